//! Opens a GGUF file and, of a split one, the parts beside it: `NAME-00001-of-000NN.gguf`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encoded::Encoding;
use super::gguf::{self, TensorInfo};
use super::mapping::Storage;
use super::{Checkpoint, GgufMetadata, Metadata, Tensor};
use crate::{Error, Result};

/// Opens the file at `path` with all its parts.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let opened = Part::open(path.to_owned())?;
    let count = opened.metadata.find("split.count")?.unwrap_or(0);
    collect(if count > 1 { open_parts(opened, count)? } else { vec![opened] })
}

/// A mapped part, or the whole of a file that is not split.
struct Part {
    data: Arc<Storage>,
    metadata: GgufMetadata,
    tensors: Vec<TensorInfo>,
}

impl Part {
    fn open(path: PathBuf) -> Result<Self> {
        let data = Arc::new(Storage::map(&path)?);
        let contents = gguf::parse(data.bytes(), &path)?;
        Ok(Part { data, metadata: GgufMetadata::new(path, contents.metadata), tensors: contents.tensors })
    }

    fn error(&self, what: impl Into<String>) -> Error {
        Error::file(self.metadata.file(), what)
    }

    /// Compares the field `key` with what it must be.
    fn check(&self, key: &str, expected: usize) -> Result<()> {
        match self.metadata.require::<usize>(key)? {
            found if found == expected => Ok(()),
            found => Err(self.error(format!("metadata {key} is {found}, but the parts make it {expected}"))),
        }
    }
}

/// All parts in order, of which `opened` is one.
fn open_parts(opened: Part, count: usize) -> Result<Vec<Part>> {
    let path = opened.metadata.file().to_owned();
    let Some((stem, number)) = part_name(&path, count) else {
        return Err(opened.error(format!(
            "metadata split.count is {count}, but the file is not named …-00001-of-{count:05}.gguf: give the parts \
             their names back"
        )));
    };
    let mut opened = Some(opened);
    let mut parts = Vec::new();
    for i in 1..=count {
        let path = path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"));
        let part = match opened.take_if(|_| i == number) {
            Some(part) => part,
            None if !path.exists() => {
                return Err(Error::file(
                    path,
                    format!("part {i} of {count} is missing: download it to this place"),
                ));
            }
            None => Part::open(path)?,
        };
        part.check("split.no", i - 1)?;
        part.check("split.count", count)?;
        parts.push(part);
    }
    parts[0].check("split.tensors.count", parts.iter().map(|part| part.tensors.len()).sum())?;
    Ok(parts)
}

/// What stands before `-00001-of-000NN.gguf`, and the part's number from 1.
fn part_name(path: &Path, count: usize) -> Option<(&str, usize)> {
    let name = path.file_name()?.to_str()?.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (stem, number) = name.rsplit_once('-')?;
    let number = number.parse().ok().filter(|number| (1..=count).contains(number))?;
    Some((stem, number))
}

/// The tensors of all parts; the metadata is the first part's.
fn collect(parts: Vec<Part>) -> Result<Checkpoint> {
    let mut tensors = BTreeMap::new();
    for part in &parts {
        for TensorInfo { name, kind, shape, range } in &part.tensors {
            let tensor = Tensor {
                name: name.clone(),
                kind: *kind,
                shape: shape.clone(),
                data: Arc::clone(&part.data),
                range: range.clone(),
                encoding: Encoding::Blocks,
            };
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(part.error(format!("tensor {name} occurs in an earlier part too")));
            }
        }
    }
    let files = parts.iter().map(|part| part.metadata.file().to_owned()).collect();
    let metadata = parts.into_iter().next().expect("there is at least one part").metadata;
    Ok(Checkpoint { files, metadata: Metadata::Gguf(metadata), tensors })
}
