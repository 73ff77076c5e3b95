//! Folders laid out as Hugging Face repositories: config.json, and weights in safetensors files
//! ([format](https://github.com/huggingface/safetensors#format)), one or several under an index.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::encoded::{self, Encoding};
use super::mapping::Storage;
use super::{Checkpoint, Metadata, Tensor};
use crate::quant::BlockType;
use crate::{Error, Result};

/// What says which model the weights are of.
pub(crate) const CONFIG: &str = "config.json";
/// Weights that are one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Names the file of each tensor where the weights are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// model.safetensors.index.json
#[derive(Deserialize)]
pub(crate) struct Index {
    /// The file of each tensor: plain names, so that no file outside the folder is read.
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// # Errors
    /// Bytes that are no index, or it names another file than safetensors beside it; without the index' own name.
    pub fn parse(bytes: &[u8]) -> Result<Index, String> {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| format!("is not valid: {e}"))?;
        for (name, file) in &index.weight_map {
            let fault = match Path::new(file).file_name() {
                Some(plain) if plain != file.as_str() => "not a plain file name",
                Some(_) if file.ends_with(".safetensors") => continue,
                Some(_) => "no safetensors file",
                None => "not a plain file name",
            };
            return Err(format!("weight_map names the file '{file}' for {name}: {fault}"));
        }
        Ok(index)
    }

    /// # Errors
    /// As [`Index::parse`], or a file that cannot be read.
    pub fn read(path: &Path) -> Result<Index> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Index::parse(&bytes).map_err(|what| Error::file(path, what))
    }
}

/// Whether the name is that of an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".safetensors.index.json")
}

/// Whether a file that begins with these 9 bytes may be safetensors: a u64 length of a JSON object.
pub(super) fn begins(start: &[u8]) -> bool {
    matches!(start, [_, _, _, _, 0, 0, 0, 0, b'{'])
}

/// Opens the weights of a folder.
pub(super) fn open_folder(folder: &Path) -> Result<Checkpoint> {
    if !folder.join(CONFIG).is_file() {
        return Err(no_repository(folder));
    }
    if folder.join(SINGLE).is_file() {
        open_single(folder, &folder.join(SINGLE))
    } else if folder.join(INDEX).is_file() {
        open_index(folder, &folder.join(INDEX))
    } else {
        Err(Error::file(folder, format!("has neither {SINGLE} nor {INDEX}: download the weights")))
    }
}

/// Opens the checkpoint that a file belongs to: an index, a single file, or one of several under an index.
pub(super) fn open_file(path: &Path) -> Result<Checkpoint> {
    let folder = path.parent().unwrap_or(Path::new(""));
    if is_index(path) {
        return open_index(folder, path);
    }
    let index = folder.join(INDEX);
    if index.is_file() && Index::read(&index)?.weight_map.values().any(|file| path.ends_with(file)) {
        return open_index(folder, &index);
    }
    open_single(folder, path)
}

/// A folder that is no repository: names the GGUF files in it, which may be what was meant.
fn no_repository(folder: &Path) -> Error {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut ggufs: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|n| n.ends_with(".gguf")).collect();
    ggufs.sort();
    let hint = if ggufs.is_empty() {
        String::new()
    } else {
        format!("; or name a file in it: {}", ggufs.join(", "))
    };
    Error::file(folder, format!("has no {CONFIG}: a folder must be a Hugging Face repository{hint}"))
}

fn open_single(folder: &Path, path: &Path) -> Result<Checkpoint> {
    let metadata = metadata(folder)?;
    let tensors = of_text(open_tensors(path)?, &metadata);
    let tensors = encoded::join(tensors, &metadata).map_err(|what| Error::file(path, what))?;
    Ok(Checkpoint { files: vec![path.to_owned()], metadata, tensors })
}

fn open_index(folder: &Path, path: &Path) -> Result<Checkpoint> {
    let metadata = metadata(folder)?;
    let index = Index::read(path)?;
    let mut shards = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, file) in index.weight_map {
        let shard = folder.join(&file);
        if !shards.contains_key(&shard) {
            if !shard.is_file() {
                return Err(Error::file(
                    shard,
                    format!("is missing, but {INDEX} names it: download it to this place"),
                ));
            }
            shards.insert(shard.clone(), open_tensors(&shard)?);
        }
        let tensor = shards.get_mut(&shard).and_then(|tensors| tensors.remove(&name));
        let missing = || Error::file(&shard, format!("has no tensor '{name}', but {INDEX} says so"));
        tensors.insert(name.clone(), tensor.ok_or_else(missing)?);
    }
    let tensors = of_text(tensors, &metadata);
    let tensors = encoded::join(tensors, &metadata).map_err(|what| Error::file(path, what))?;
    Ok(Checkpoint { files: shards.into_keys().collect(), metadata, tensors })
}

fn metadata(folder: &Path) -> Result<Metadata> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Err(Error::file(path, "is missing: weights need it beside them"));
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("is not valid: {e}")))?;
    if !config.is_object() {
        return Err(Error::file(path, "is not a JSON object"));
    }
    Ok(Metadata::HuggingFace { config: text_config(config), folder: folder.to_owned() })
}

/// The `model_type` of Magistral's second version: a text model and one for images in one repository. Of these only the first
/// is run.
const WITH_IMAGES: &str = "mistral3";

/// Of a repository that holds more than a text model, the part of config.json that speaks of that, before what stands around
/// it.
fn text_config(mut config: serde_json::Value) -> serde_json::Value {
    if config["model_type"] == WITH_IMAGES
        && let (Some(text), Some(all)) = (config["text_config"].as_object().cloned(), config.as_object_mut())
    {
        all.extend(text.into_iter().filter(|(_, value)| !value.is_null()));
    }
    config
}

/// The tensors of the text model under the names that they have where nothing stands beside it.
fn of_text(tensors: BTreeMap<String, Tensor>, metadata: &Metadata) -> BTreeMap<String, Tensor> {
    let Metadata::HuggingFace { config, .. } = metadata else { return tensors };
    if config["text_config"].is_null() {
        return tensors;
    }
    let renamed = |(name, tensor): (String, Tensor)| {
        let name = match name.strip_prefix("language_model.") {
            Some(rest) => rest.to_owned(),
            None => name.replacen("model.language_model.", "model.", 1),
        };
        let of_images = ["vision_tower.", "multi_modal_projector."];
        let rest = name.strip_prefix("model.").unwrap_or(&name);
        (!of_images.iter().any(|part| rest.starts_with(part)))
            .then(|| (name.clone(), Tensor { name, ..tensor }))
    };
    tensors.into_iter().filter_map(renamed).collect()
}

/// The tensors of one file. The safetensors crate compares lengths and offsets with the file.
fn open_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let data = Arc::new(Storage::map(path)?);
    let (header, metadata) = SafeTensors::read_metadata(data.bytes())
        .map_err(|e| Error::file(path, format!("is no whole safetensors file ({e}): download it again")))?;
    let start = 8 + header;
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (kind, encoding) = stored(info.dtype).ok_or_else(|| {
            let what = format!(
                "tensor {name} is {:?}, which is not supported (F32, F16, BF16, F8_E4M3 with scales, MXFP4)",
                info.dtype
            );
            Error::file(path, what)
        })?;
        if info.shape.contains(&0) {
            let what = format!("tensor {name} has the shape {:?}: no dimension may be 0", info.shape);
            return Err(Error::file(path, what));
        }
        let (begin, end) = info.data_offsets;
        let tensor = Tensor {
            name: name.clone(),
            kind,
            shape: info.shape.clone(),
            data: Arc::clone(&data),
            range: start + begin..start + end,
            encoding,
        };
        Ok((name, tensor))
    };
    metadata.tensors().into_iter().map(tensor).collect()
}

/// What a tensor's values are once they are decoded, and how they are stored.
fn stored(dtype: Dtype) -> Option<(BlockType, Encoding)> {
    match dtype {
        Dtype::F32 => Some((BlockType::F32, Encoding::Blocks)),
        Dtype::F16 => Some((BlockType::F16, Encoding::Blocks)),
        Dtype::BF16 => Some((BlockType::BF16, Encoding::Blocks)),
        Dtype::F8_E4M3 => Some((BlockType::F32, Encoding::Bare)),
        Dtype::U8 => Some((BlockType::MXFP4, Encoding::Bare)),
        _ => None,
    }
}
