//! Access to the hub and its cache: the options, and the environment variables that set them.

use crate::files;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The most bytes of a file with a token.
const MAX_TOKEN_BYTES: u64 = 1 << 16;
/// The default revision.
pub const DEFAULT_REVISION: &str = "main";

/// How to reach the hub, and the location of its cache.
///
/// The cache has the layout of Python's `huggingface_hub`, so both programs can share one.
#[derive(Clone)]
pub struct HubOptions {
    /// The folder that contains the `models--owner--name` folders.
    pub cache_dir: PathBuf,
    /// The URL of the hub or a mirror, without a trailing slash.
    pub endpoint: String,
    /// The access token, sent to the endpoint but never to another host.
    pub token: Option<String>,
    /// A branch, a tag, `refs/pr/N` or a commit.
    pub revision: String,
    /// Use the cache only.
    pub offline: bool,
    /// Prefer weight files with this word in their names, such as `fp16`.
    pub variant: Option<String>,
    /// Components that are not needed, such as `text_encoder_3`.
    pub without: Vec<String>,
    /// Folders and classes of components that are needed although `model_index.json` does not name them.
    pub with: Vec<(String, String)>,
    /// The URL of an HTTP proxy.
    pub proxy: Option<String>,
    /// How long a request is repeated in which nothing comes, because the hub is busy or the network fails. A server that
    /// asks for a longer pause, of up to ten minutes, gets it.
    pub patience: Duration,
    /// Hosts to reach without the proxy, separated by commas.
    pub no_proxy: Option<String>,
    /// A PEM file of certificates to trust instead of the built-in list of public authorities.
    pub ca_file: Option<PathBuf>,
}

impl HubOptions {
    /// Returns the options for the public hub with its cache in `cache_dir`, without a token.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            revision: DEFAULT_REVISION.to_owned(),
            offline: false,
            variant: None,
            without: Vec::new(),
            with: Vec::new(),
            proxy: None,
            patience: Duration::from_secs(60),
            no_proxy: None,
            ca_file: None,
        }
    }

    /// Reads the options from environment variables; `lookup` returns the value of one variable.
    ///
    /// The variables are those of `huggingface_hub`, in its order of precedence. The token file beside the cache is
    /// read, too:
    ///
    /// | option | variables |
    /// |---|---|
    /// | `cache_dir` | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME` |
    /// | `endpoint` | `HF_ENDPOINT` |
    /// | `token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, else the file `HF_TOKEN_PATH` or `HF_HOME/token` |
    /// | `offline` | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` |
    /// | `proxy`, `no_proxy` | `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in upper or lower case |
    /// | `ca_file` | `SSL_CERT_FILE` |
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Self {
        // An empty variable counts as unset, as with a shell's `${NAME:-default}`.
        let first = |names: &[&str]| {
            names.iter().find_map(|&name| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()))
        };
        let user_home = first(&["HOME", "USERPROFILE"]).map(PathBuf::from);
        let path = |names: &[&str]| first(names).map(|value| expand_tilde(&value, user_home.as_deref()));

        let hf_home = path(&["HF_HOME"]).unwrap_or_else(|| {
            path(&["XDG_CACHE_HOME"])
                .unwrap_or_else(|| user_home.clone().unwrap_or_default().join(".cache"))
                .join("huggingface")
        });
        let cache_dir =
            path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| hf_home.join("hub"));
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| hf_home.join("token"));
        let endpoint = first(&["HF_ENDPOINT"]).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());

        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| read_token(&token_file)),
            offline: first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|value| is_true(&value)),
            proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]),
            ca_file: path(&["SSL_CERT_FILE"]),
            ..Self::new(cache_dir)
        }
    }
}

impl fmt::Debug for HubOptions {
    /// Omits the token, the proxy and its password, so that they never appear in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .field("variant", &self.variant)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

fn expand_tilde(value: &str, home: Option<&Path>) -> PathBuf {
    match (value.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(value),
    }
}

/// A missing or unreadable token file means no token: most models need none, and the hub reports those that do.
fn read_token(file: &Path) -> Option<String> {
    let token = String::from_utf8(files::read(file, MAX_TOKEN_BYTES).ok()?).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}
