//! A name becomes files on disk.
