//! Questions to the hub.
//!
//! hf-hub 0.5 (its `ureq` face) gives the client, the addresses and the cache layout. Its own download is not used: it
//! reads two of the six environment variables, checks no hash, keeps no partial file under the name that the Python
//! library knows, and asserts where an error is due. hf-hub 1.0 brings Xet, hundreds of crates and a C library, and
//! starts a broken download from the beginning. So files are fetched here by the same `ureq`: ranges, hashes, locks
//! and retries are in `download`.

use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, header};

use super::Settings;
use crate::{Error, Result};

/// Longest wait for a connection, for the head of an answer, and for the next bytes of its body.
const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(60);
const NEXT_BYTES: Duration = Duration::from_secs(30);

/// Longest wait that a server may ask for.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Bytes that an answer which is read into memory has at most; the largest index of shards has nine million.
const LARGEST_ANSWER: u64 = 64 << 20;

/// A client of one hub.
pub(super) struct Client {
    settings: Settings,
    api: Api,
    agent: Agent,
}

/// What a repository holds at a revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub licence: Option<String>,
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub path: String,
    pub size: Option<u64>,
    pub sha256: Option<String>,
    pub git_sha1: Option<String>,
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// In words.
    pub what: String,
    /// Whether the same request may succeed later.
    pub passing: bool,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Client> {
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.value.clone()))
            .with_endpoint(settings.endpoint.value.clone())
            .with_token(settings.token.value.clone())
            .with_user_agent("pensive", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|error| Error::Hub(format!("the hub's client cannot be set up: {error}")))?;
        // Redirects lead to a CDN: the token must not follow there.
        let config = Agent::config_builder()
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("pensive/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(NEXT_BYTES));
        Ok(Client { settings: settings.clone(), api, agent: config.build().into() })
    }

    /// What `repository` holds at `revision`.
    pub fn listing(&self, repository: &str, revision: &str) -> Result<Listing, Failure> {
        let repo = Repo::with_revision(repository.into(), RepoType::Model, revision.into());
        let request = self.api.repo(repo).info_request().query("blobs", "true");
        let request = request.config().http_status_as_error(false);
        let request = request.timeout_connect(Some(CONNECT)).timeout_global(Some(ANSWER)).build();
        let mut answer = request.call().map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(self.refused(&answer, repository, revision));
        }
        let body = answer.body_mut().with_config().limit(LARGEST_ANSWER).read_to_string();
        let body = body.map_err(|error| self.unreachable(&error))?;
        parse_listing(&body).map_err(|what| Failure {
            what: format!(
                "{} answers with something else than a listing: {what}; check HF_ENDPOINT, and with a browser whether \
                 this network wants a login first",
                self.settings.endpoint.value
            ),
            passing: false,
            wait: None,
        })
    }

    /// The bytes of a file of a commit from `from` on. The status is 200 (the whole file), 206 (from there on) or 416
    /// (there is nothing more).
    pub fn file(
        &self,
        repository: &str,
        commit: &str,
        path: &str,
        from: u64,
    ) -> Result<Response<ureq::Body>, Failure> {
        let repo = Repo::with_revision(repository.into(), RepoType::Model, commit.into());
        let url = self.api.repo(repo).url(&percent_encode(path));
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.settings.token.value {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        match answer.status().as_u16() {
            200 | 206 | 416 => Ok(answer),
            _ => Err(self.refused(&answer, repository, commit)),
        }
    }

    /// All bytes of a small file of a commit.
    pub fn bytes(&self, repository: &str, commit: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let mut answer = self.file(repository, commit, path, 0)?;
        let body = answer.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        body.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let passing = !matches!(error, ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl);
        let endpoint = &self.settings.endpoint.value;
        let why = match error {
            ureq::Error::Io(error) => error.to_string(), // without ureq's "io: "
            other => other.to_string(),
        };
        let what = format!("cannot reach {endpoint}: {why}; check the network, HF_ENDPOINT and the proxy");
        Failure { what, passing, wait: None }
    }

    /// What an answer that is no success means, by its status and the hub's own code.
    fn refused(&self, answer: &Response<ureq::Body>, repository: &str, revision: &str) -> Failure {
        let endpoint = &self.settings.endpoint.value;
        let token = &self.settings.token;
        let head = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let wait = head("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let status = answer.status().as_u16();
        let gated = format!(
            "{repository} is gated: accept its licence at {endpoint}/{repository}, then set HF_TOKEN to a token of that account"
        );
        let what = match (status, head("x-error-code")) {
            (_, Some("GatedRepo")) | (403, _) => gated,
            (_, Some("RevisionNotFound")) => format!("{repository} has no revision {revision:?}"),
            (_, Some("EntryNotFound")) => format!("{repository} has no such file at {revision}"),
            (401, Some("RepoNotFound") | None) | (404, _) => match token.value {
                None => format!(
                    "{endpoint} has no repository {repository}, or it is private: check the name, or set HF_TOKEN"
                ),
                Some(_) => format!(
                    "{endpoint} has no repository {repository} that the token of {} may read: check the name and the token",
                    token.origin
                ),
            },
            (429, _) => {
                let when = wait.map_or("later".into(), |wait| format!("in {} s", wait.as_secs()));
                let token = if token.value.is_none() { ", or set HF_TOKEN" } else { "" };
                format!("{endpoint} has had too many requests from here: try again {when}{token}")
            }
            _ => format!("{endpoint} refuses {repository}: {}", answer.status()),
        };
        Failure { what, passing: status == 408 || status == 429 || status >= 500, wait }
    }
}

/// The hub's answer to `/api/models/…/revision/…?blobs=true`, as far as it is needed.
fn parse_listing(body: &str) -> Result<Listing, String> {
    #[derive(Deserialize)]
    struct Info {
        sha: String,
        siblings: Vec<Sibling>,
        #[serde(rename = "cardData")]
        card: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sibling {
        rfilename: String,
        size: Option<u64>,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: String,
        size: Option<u64>,
    }
    let info: Info = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let is_hash =
        |hash: &str, digits: usize| hash.len() == digits && hash.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hash(&info.sha, 40) {
        return Err(format!("{:?} is no commit", info.sha));
    }
    let file = |sibling: Sibling| RemoteFile {
        size: sibling.lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size),
        sha256: sibling.lfs.map(|lfs| lfs.sha256.to_lowercase()).filter(|hash| is_hash(hash, 64)),
        git_sha1: sibling.blob_id.map(|id| id.to_lowercase()).filter(|hash| is_hash(hash, 40)),
        path: sibling.rfilename,
    };
    // The path becomes a path of this machine: one that leaves its folder is not taken over.
    let inside = |file: &RemoteFile| super::reference::is_inner_path(&file.path);
    Ok(Listing {
        commit: info.sha,
        licence: info.card.as_ref().and_then(licence),
        files: info.siblings.into_iter().map(file).filter(inside).collect(),
    })
}

/// The licence that a model card states: its name where it has one of its own ("license: other").
fn licence(card: &serde_json::Value) -> Option<String> {
    let text = |key: &str| card.get(key).and_then(|value| value.as_str().or_else(|| value.get(0)?.as_str()));
    let licence = text("license")?;
    Some(if licence == "other" { text("license_name").unwrap_or(licence) } else { licence }.to_owned())
}

/// Escapes what may not stand in the path of an address.
fn percent_encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_listing_gives_commit_licence_sizes_and_hashes() {
        let sha256 = "AB".repeat(32);
        let body = serde_json::json!({
            "sha": COMMIT,
            "cardData": { "license": "other", "license_name": "qwen-research" },
            "siblings": [
                { "rfilename": "README.md", "size": 7, "blobId": COMMIT },
                { "rfilename": "x.gguf", "size": 9, "blobId": COMMIT, "lfs": { "sha256": sha256, "size": 9, "pointerSize": 1 } },
                { "rfilename": "../../evil.gguf", "size": 1 },
            ],
        });
        let listing = parse_listing(&body.to_string()).unwrap();
        assert_eq!((listing.commit.as_str(), listing.licence.as_deref()), (COMMIT, Some("qwen-research")));
        assert_eq!(listing.files.len(), 2);
        assert_eq!(listing.files[1].sha256.as_deref(), Some("ab".repeat(32).as_str()));
        assert_eq!((listing.files[0].size, listing.files[0].sha256.as_ref()), (Some(7), None));
    }

    #[test]
    fn an_answer_that_is_no_listing_is_refused() {
        for body in ["", "<html>", "{}", r#"{"sha": "../..", "siblings": []}"#] {
            assert!(parse_listing(body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_licence_is_a_word_or_the_first_of_a_list() {
        assert_eq!(licence(&serde_json::json!({ "license": "mit" })).as_deref(), Some("mit"));
        assert_eq!(licence(&serde_json::json!({ "license": ["mit", "apache-2.0"] })).as_deref(), Some("mit"));
        assert_eq!(licence(&serde_json::json!({})), None);
    }

    #[test]
    fn addresses_hold_no_blanks_or_signs() {
        assert_eq!(percent_encode("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
    }
}
