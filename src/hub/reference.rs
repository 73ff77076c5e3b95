//! What a model's name means.

use std::fmt;
use std::path::{Path, PathBuf};

use super::settings::PUBLIC_HUB;
use crate::catalog::{self, Entry, quantization};
use crate::checkpoint::embedded;
use crate::{Error, Result};

/// What a name means.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// A file or folder of this machine.
    Path(PathBuf),
    /// Files of a hub repository.
    Hub(HubReference),
}

/// Files of a hub repository. [`fmt::Display`] writes it as a name that parses to the same.
#[derive(Clone, Debug, PartialEq)]
pub struct HubReference {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit; `main` unless said otherwise.
    pub revision: String,
    /// Which of its files.
    pub select: Select,
    /// The catalog's entry, if it was named by a short name or the repository is the catalog's.
    pub entry: Option<&'static Entry>,
}

/// Which files of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// Nothing was said: the catalog's preferred quantization, else Q4_K_M, else the only one there is.
    Default,
    /// This quantization, in capitals: `Q8_0`.
    Quantization(String),
    /// This file of the repository; of a split model any part.
    File(String),
}

/// The branch of a repository that is meant when none is named.
pub(super) const MAIN: &str = "main";

impl Reference {
    /// What `name` means; the first that holds:
    ///
    /// - the [embedded](crate::checkpoint::embedded) model's name, `pocket` (a file of this name is `./pocket`);
    /// - an existing file or folder;
    /// - a catalog name: `deepseek-r1`, `deepseek-r1:7b`, `deepseek-r1:7b-q8_0`;
    /// - a hub id: `owner/repo[@revision][:QUANT]`, `owner/repo[@revision]/path/file.gguf`;
    /// - the same behind `hf.co/`, `huggingface.co/` or `endpoint`, with or without `https://`, also as copied from a
    ///   browser: `…/resolve/REV/file.gguf`, `…/blob/REV/file.gguf`, `…/tree/REV`.
    ///
    /// # Errors
    /// A path that does not exist or may not be looked up, also one that ends in `.gguf` and whose folder exists; an
    /// unknown short name (suggests the nearest); a URL of another host.
    pub fn parse(name: &str, endpoint: &str) -> Result<Reference> {
        if name.trim().is_empty() {
            return Err(Error::Hub("the name of the model is empty".into()));
        }
        if let Some(path) = embedded::path(name) {
            return Ok(Reference::Path(path.to_owned()));
        }
        let path = Path::new(name);
        let found = path.try_exists();
        if matches!(found, Ok(true)) {
            return Ok(Reference::Path(path.to_owned()));
        }
        if let Some(rest) = strip_host(name, endpoint)? {
            let rest = rest.split(['?', '#']).next().unwrap_or(rest);
            return hub_id(&percent_decode(rest), name).map(Reference::Hub);
        }
        let is_in_folder = is_gguf(name) && path.parent().is_some_and(Path::is_dir);
        if looks_like_path(name) || is_in_folder {
            found.map_err(|error| Error::io(path, error))?;
            let what = "there is no such file";
            return Err(if looks_like_path(name) {
                Error::file(path, what)
            } else {
                Error::file(path, format!("{what} in this folder; one of the hub is named hf.co/{name}"))
            });
        }
        if name.contains('/') {
            return hub_id(name, name).map(Reference::Hub);
        }
        let Some((entry, quantization)) = catalog::find_quantized(name) else {
            return Err(Error::Hub(unknown(name)));
        };
        Ok(Reference::Hub(HubReference {
            repository: entry.repository.clone(),
            revision: MAIN.into(),
            select: quantization.map_or(Select::Default, Select::Quantization),
            entry: Some(entry),
        }))
    }
}

impl HubReference {
    /// The quantization that is wanted: the one that was named, else the preferred one.
    pub(super) fn wanted(&self) -> &str {
        match (&self.select, self.entry) {
            (Select::Quantization(label), _) => label,
            (_, Some(entry)) => &entry.quantization,
            _ => "Q4_K_M",
        }
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        match &self.select {
            Select::Default => Ok(()),
            Select::Quantization(label) => write!(f, ":{label}"),
            Select::File(path) => write!(f, "/{path}"),
        }
    }
}

fn unknown(name: &str) -> String {
    let near = catalog::nearest(name);
    let hint = match near.as_slice() {
        [] => "a name is a file, one of the catalog (`deepseek-r1`), or a hub id (`owner/repo`)".into(),
        near => format!("did you mean {}?", near.join(", ")),
    };
    format!("there is no model and no file named {name:?}: {hint}")
}

/// What follows the hub's address, if `name` is one; an error for the address of another host.
fn strip_host<'a>(name: &'a str, endpoint: &str) -> Result<Option<&'a str>> {
    let endpoint = endpoint.trim_end_matches('/');
    let bare = |address: &'a str| address.split_once("://").map(|(_, rest)| rest);
    let endpoint_host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let address = bare(name).unwrap_or(name);
    for host in ["huggingface.co", "www.huggingface.co", "hf.co", endpoint_host] {
        let rest = address.get(..host.len()).filter(|head| head.eq_ignore_ascii_case(host));
        if let Some(rest) = rest.and_then(|_| address[host.len()..].strip_prefix('/')) {
            return Ok(Some(rest));
        }
    }
    if name.starts_with("https://") || name.starts_with("http://") {
        let hub = if endpoint == PUBLIC_HUB { "huggingface.co" } else { endpoint };
        return Err(Error::Hub(format!(
            "{name}: models are pulled from {hub} only; download the file and give its path, or set HF_ENDPOINT"
        )));
    }
    Ok(None)
}

/// Whether a name can only be meant as a path: `/x`, `./x`, `~/x`, `C:\x`, `x.gguf`, `folder/x.gguf`.
fn looks_like_path(name: &str) -> bool {
    let path = Path::new(name);
    if path.is_absolute() || name.contains('\\') || name.starts_with(['.', '~', '/']) {
        return true;
    }
    is_gguf(name) && name.matches('/').count() < 2
}

fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

/// `owner/repo[@revision][:QUANT]`, `owner/repo[@revision]/file`, `owner/repo/(resolve|blob|raw|tree)/revision[/file]`.
/// `shown` is the name as it was typed, for errors.
fn hub_id(id: &str, shown: &str) -> Result<HubReference> {
    let wrong = |what: &str| Error::Hub(format!("{shown}: {what}"));
    let usage = "a hub id is owner/repo[@revision][:QUANT] or owner/repo/file.gguf";
    let (owner, rest) = id.trim_end_matches('/').split_once('/').ok_or_else(|| wrong(usage))?;
    if matches!(owner, "datasets" | "spaces") {
        return Err(wrong("this is no model repository"));
    }
    let end = rest.find(['@', ':', '/']).unwrap_or(rest.len());
    let (repo, mut rest) = rest.split_at(end);
    if !is_id(owner) || !is_id(repo) {
        return Err(wrong(usage));
    }

    let mut revision = MAIN.to_owned();
    if let Some(after) = rest.strip_prefix('@') {
        (revision, rest) = take_revision(after);
    } else if let Some(after) =
        ["/resolve/", "/blob/", "/raw/", "/tree/"].iter().find_map(|p| rest.strip_prefix(p))
    {
        (revision, rest) = take_revision(after);
    }
    if !is_inner_path(&revision) {
        return Err(wrong("the revision is not a branch, tag or commit"));
    }

    let select = if rest.is_empty() {
        Select::Default
    } else if let Some(label) = rest.strip_prefix(':') {
        if !quantization::is_quantization(label) {
            return Err(wrong(&format!("{label:?} is no quantization; they are named like Q4_K_M or Q8_0")));
        }
        Select::Quantization(label.to_ascii_uppercase())
    } else {
        select_path(rest.trim_start_matches('/')).map_err(|what| wrong(&what))?
    };
    let repository = format!("{owner}/{repo}");
    let entry = catalog::for_repository(&repository);
    // The catalog's spelling, so that one repository has one folder in the cache.
    let repository = entry.map_or(repository, |entry| entry.repository.clone());
    Ok(HubReference { repository, revision, select, entry })
}

/// A file of a repository, or a folder that is named by a quantization.
fn select_path(path: &str) -> Result<Select, String> {
    if !is_inner_path(path) {
        return Err(format!("{path:?} is no path within a repository"));
    }
    if is_gguf(path) {
        return Ok(Select::File(path.to_owned()));
    }
    let last = path.rsplit('/').next().unwrap_or(path);
    if quantization::is_quantization(last) {
        return Ok(Select::Quantization(last.to_ascii_uppercase()));
    }
    Err(format!(
        "{path:?} is no GGUF file: name one that ends in .gguf, or the repository alone for its safetensors"
    ))
}

/// The revision that `text` begins with, and the rest. Only `refs/…` revisions hold slashes: `refs/pr/1`.
fn take_revision(text: &str) -> (String, &str) {
    let slashes = if text.starts_with("refs/") { 2 } else { 0 };
    let ends = text
        .match_indices(['/', ':'])
        .filter(|(_, c)| *c == ":")
        .chain(text.match_indices('/').skip(slashes));
    let end = ends.map(|(at, _)| at).min().unwrap_or(text.len());
    (text[..end].to_owned(), &text[end..])
}

/// An owner's or repository's name as the hub allows it.
fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with(['-', '.'])
        && !text.contains("..")
        && !text.contains("--")
}

/// Whether `path` stays inside a folder, on every system, and is what a name can carry.
pub(super) fn is_inner_path(path: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(|c: char| {
                c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')
            })
    };
    path.split('/').all(part)
}

/// Undoes `%20` and its like; what is no such escape stays.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let value = escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests;
