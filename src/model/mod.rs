//! Hyperparameters, and one decoder text for every architecture.
