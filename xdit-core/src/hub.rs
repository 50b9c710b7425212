//! Finds a model by its folder or by its id on the Hugging Face hub.
//!
//! [`resolve`] turns a model name into a local folder in the diffusers layout. Ids are looked up in the cache of
//! Python's `huggingface_hub`, so a model downloaded by either program is available to the other. Only the files
//! that a pipeline reads are downloaded ([`select`]). Each file is first written to a `.incomplete` file, resumed
//! after an interruption, checked, and then renamed. Nothing here prints or reads the environment.
//!
//! The `hf-hub` crate is not used (versions 0.4.3, 0.5.0 and 1.0.0 were examined). Version 1.0.0 cannot resume a
//! file and adds an async runtime and the client of another storage protocol. The older versions resume without
//! checking the size, the hash, or the server's response to the range request, so a server that ignores the range
//! corrupts the file. None of the three falls back on the cache when the network is down. This client needs only
//! three requests and a folder layout.
//!
//! # Source
//! `file_download.py` and `_snapshot_download.py` of `huggingface_hub` for the layout, headers and variables;
//! `DiffusionPipeline.download` of diffusers for the choice of files.

mod cache;
mod client;
mod fault;
mod fetch;
mod mistaken;
mod options;
mod outline;
mod patience;
mod select;

pub use options::{DEFAULT_ENDPOINT, DEFAULT_REVISION, HubOptions};
pub use outline::{Outline, outline};
pub use select::{MODEL_INDEX, ModelIndex, check_variant, select};

use crate::{Error, Result, files};
use cache::{RepoCache, create_parent, files_of, is_commit};
use client::{Client, Metadata};
use fault::{Fault, Subject};
use fetch::{FetchError, fetch};
use mistaken::without_password;
use patience::Patience;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most bytes of a file without weights; tokenizers have at most 20 MB.
const MAX_SMALL_BYTES: u64 = 64 << 20;

/// The download progress of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download<'a> {
    /// The path in the repository, such as `vae/config.json`.
    pub file: &'a str,
    /// Bytes on disk, including those left by an earlier run.
    pub done_bytes: u64,
    /// `None` if the server does not announce a length.
    pub total_bytes: Option<u64>,
    /// True in the last report on this file, once it has been checked and renamed.
    pub finished: bool,
    /// True if another process downloads the file, and this one waits for it.
    pub waits: bool,
    /// The pause before the next attempt, if the hub is busy or the network failed.
    pub pause: Option<Duration>,
    /// The number and the size of the files that are missing, this one included; the size is that of the files whose size is
    /// known.
    pub missing: (usize, u64),
}

impl<'a> Download<'a> {
    /// Nothing of `file` yet.
    fn begun(file: &'a str) -> Self {
        Self {
            file,
            done_bytes: 0,
            total_bytes: None,
            finished: false,
            waits: false,
            pause: None,
            missing: (1, 0),
        }
    }
}

/// Returns the local folder of `model`: the folder of that name, or the cached snapshot of that hub id.
///
/// A folder takes precedence over an id. For an id, files missing from the cache are downloaded, and `progress` is
/// called for each of them. A fully cached model costs one request for the revision's commit, or none if the
/// revision is a commit hash. If the hub cannot be reached, the cached snapshot is used.
///
/// # Errors
/// - `model` is neither a folder nor an id, or the folder has no `model_index.json`.
/// - The hub refuses access (a gated model, a wrong name) or sends something other than it announced.
/// - The hub cannot be reached and the cache is incomplete.
/// - The disk cannot be written.
///
/// Each error names the model or file and gives a remedy.
pub fn resolve(model: &str, options: &HubOptions, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
    match Found::new(model, options)? {
        Found::Folder(folder) => Ok(folder),
        Found::Repo(repo) => repo.resolve(progress).map_err(|error| repo.or_no_folder(error)),
    }
}

/// What a model's name stands for.
enum Found<'a> {
    /// This folder, which is in the diffusers layout.
    Folder(PathBuf),
    /// A model on the hub.
    Repo(Repo<'a>),
}

impl<'a> Found<'a> {
    fn new(model: &'a str, options: &'a HubOptions) -> Result<Self> {
        let path = Path::new(model);
        if path.is_dir() {
            return check_folder(path, options.variant.as_deref()).map(|()| Self::Folder(path.to_owned()));
        }
        if path.symlink_metadata().is_ok() {
            return Err(mistaken::file(path));
        }
        if !is_hub_id(model) {
            return Err(mistaken::name(model));
        }
        if !is_revision(&options.revision) {
            return Err(Error::usage(format!("`{}` is not a valid revision", options.revision))
                .hint("give a branch, a tag or a full commit hash"));
        }
        Ok(Self::Repo(Repo { model, options, cache: RepoCache::new(&options.cache_dir, model) }))
    }
}

/// Checks that `folder` is in the diffusers layout and, if a `variant` is given, that it has weights of it.
///
/// # Errors
/// If not.
pub fn check_folder(folder: &Path, variant: Option<&str>) -> Result<()> {
    let index = folder.join(MODEL_INDEX);
    if index.symlink_metadata().is_err() {
        return Err(mistaken::folder(folder));
    }
    let Some(variant) = variant else { return Ok(()) };
    let shown = folder.display().to_string();
    let text = String::from_utf8_lossy(&files::read(&index, MAX_SMALL_BYTES)?).into_owned();
    check_variant(&shown, &ModelIndex::parse(&shown, &text)?, &files_of(folder), variant)
}

/// Checks the hub's rules for `owner/name`.
fn is_hub_id(text: &str) -> bool {
    let word = |part: &str| {
        let edge = |char: Option<char>| char.is_some_and(|char| char != '-' && char != '.');
        edge(part.chars().next())
            && edge(part.chars().last())
            && part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
    };
    text.len() <= 96
        && text.split('/').count() == 2
        && text.split('/').all(word)
        && !text.contains("--")
        && !text.contains("..")
        && !text.ends_with(".git")
}

/// A revision becomes a path below `refs` and must not leave that folder; git forbids the same names.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    text.split('/').all(part)
        && !text.contains("..")
        && !text.contains(['\\', ':', ' ', '\0', '?', '*', '~', '^'])
}

/// One model on the hub.
struct Repo<'a> {
    model: &'a str,
    options: &'a HubOptions,
    cache: RepoCache,
}

/// The files of a model that a pipeline needs.
struct Needed {
    client: Client,
    commit: String,
    /// The snapshot in the cache, which may lack some of them.
    folder: PathBuf,
    /// Their paths in the repository, those of weights last.
    files: Vec<String>,
    /// Their sizes in bytes, where the hub lists them.
    sizes: HashMap<String, u64>,
}

impl Needed {
    /// The needed files that are not in the cache.
    fn missing(&self) -> Vec<String> {
        self.files.iter().filter(|file| !self.folder.join(file).exists()).cloned().collect()
    }

    /// The size of `files` in bytes, of which those count whose size is known.
    fn bytes(&self, files: &[String]) -> u64 {
        files.iter().filter_map(|file| self.sizes.get(file)).sum()
    }
}

/// A complete snapshot in the cache, or the files to get for one.
enum State {
    Cached(PathBuf),
    Needed(Box<Needed>),
}

impl Repo<'_> {
    fn resolve(&self, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        let needed = match self.look(progress)? {
            State::Cached(folder) => return Ok(folder),
            State::Needed(needed) => needed,
        };
        let missing = needed.missing();
        self.check_space(needed.bytes(&missing))?;
        self.download(&needed, &missing, progress)?;
        // Written last, so that offline runs never see a newer commit that is incomplete. A failure is ignored: a
        // complete cache that is read-only works without the ref.
        let _ = self.cache.write_ref(&self.options.revision, &needed.commit);
        Ok(needed.folder)
    }

    /// Adds what a name that looks like an id means, if the first part of it is a folder here.
    fn or_no_folder(&self, error: Error) -> Error {
        let model = self.model;
        match Path::new(model).parent().is_some_and(Path::is_dir) {
            true => error.reworded_with(|message| format!("there is no folder `{model}`, and {message}")),
            false => error,
        }
    }

    /// Downloads `files`.
    fn download(
        &self,
        needed: &Needed,
        files: &[String],
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        for (at, file) in files.iter().enumerate() {
            let missing = (files.len() - at, needed.bytes(&files[at..]));
            let progress = &mut |download: Download<'_>| progress(Download { missing, ..download });
            let size = needed.sizes.get(file).copied();
            self.ensure(&needed.client, &needed.commit, (file, size), progress)?;
        }
        Ok(())
    }

    /// Asks the hub for the files of the revision, and downloads the list of the model's components.
    fn look(&self, progress: &mut dyn FnMut(Download<'_>)) -> Result<State> {
        let Self { model, options, cache } = self;
        let (revision, variant) = (options.revision.as_str(), options.variant.as_deref());
        // A commit never changes, so a complete snapshot of one needs no request.
        if is_commit(revision)
            && let Ok(folder) = cache.complete_snapshot(revision, options)
        {
            return Ok(State::Cached(folder));
        }
        if options.offline {
            return self.cached().map(State::Cached);
        }
        let client = Client::new(options)?;
        // Without the hub, a complete copy serves at once; and without a network at all, nothing is gained by waiting.
        let has_copy = self.cached().is_ok();
        let listing = patiently(
            &client,
            model,
            progress,
            |fault| !has_copy && fault.has_answer(),
            || client.listing(model, revision),
        );
        let listing = match listing {
            Ok(listing) => listing,
            Err(fault) if fault.leaves_the_cache() => {
                // The hub's error is more useful than the list of files missing from the cache.
                return self.cached().map(State::Cached).map_err(|_| fault.into_error(self.subject(None)));
            }
            Err(fault) => return Err(fault.into_error(self.subject(None))),
        };
        if !listing.files.iter().any(|file| file == MODEL_INDEX) {
            return Err(Error::usage(format!(
                "`{model}` has no `{MODEL_INDEX}`, so it is not in the diffusers layout"
            ))
            .hint("look for a repository of the same model with a name that ends in `-diffusers`"));
        }
        let commit = listing.commit.as_str();
        let size = |file: &str| listing.sizes.get(file).copied();
        self.ensure(&client, commit, (MODEL_INDEX, size(MODEL_INDEX)), progress)?;
        let folder = cache.snapshot(commit);
        let text = files::read(&folder.join(MODEL_INDEX), MAX_SMALL_BYTES)?;
        let index = ModelIndex::parse(model, &String::from_utf8_lossy(&text))?;
        let index = index.changed(&options.without, &options.with);
        let files = select(model, &index, &listing.files, variant)?;
        Ok(State::Needed(Box::new(Needed {
            client,
            commit: listing.commit,
            folder,
            files,
            sizes: listing.sizes,
        })))
    }

    /// Checks that `bytes` more fit on the disk of the cache. Partial downloads are counted twice.
    fn check_space(&self, bytes: u64) -> Result<()> {
        let cache = &self.options.cache_dir;
        match cache::free_bytes(cache).filter(|free| bytes > *free) {
            None => Ok(()),
            Some(free) => {
                let [bytes, free] = [bytes, free].map(|bytes| bytes as f64 / 1e9);
                let (model, cache) = (self.model, cache.display());
                Err(Error::failure(format!(
                    "`{model}` takes {bytes:.1} GB more, and {free:.1} GB are free in the cache `{cache}`"
                ))
                .hint("free some space, or set `HF_HOME` to a folder on a larger disk"))
            }
        }
    }

    /// Finds the snapshot left by an earlier run, without using the network.
    fn cached(&self) -> Result<PathBuf> {
        let Self { model, options, cache } = self;
        let revision = &options.revision;
        let hint = "unset `HF_HUB_OFFLINE` to download it, or set `HF_HOME` to a cache that contains it";
        let Some(commit) = cache.commit(revision) else {
            return Err(Error::failure(format!(
                "`{model}` at revision `{revision}` is not in the cache `{}`",
                options.cache_dir.display()
            ))
            .hint(hint));
        };
        cache.complete_snapshot(&commit, options).map_err(|missing| {
            Error::failure(format!("the cached copy of `{model}` is incomplete: {}", missing.message()))
                .hint(hint)
        })
    }

    /// Downloads one file, unless its snapshot entry or its blob already exists. Its size in bytes is that of the listing.
    fn ensure(
        &self,
        client: &Client,
        commit: &str,
        (file, size): (&str, Option<u64>),
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        if self.cache.snapshot(commit).join(file).exists() {
            return Ok(());
        }
        let url = client.file_url(self.model, commit, file);
        let mut metadata = patiently(client, file, progress, |_| true, || client.metadata(&url))
            .map_err(|fault| fault.into_error(self.subject(Some(file))))?;
        metadata.bytes = metadata.bytes.or(size);
        self.ensure_blob(client, &url, &metadata, file, progress)?;
        self.cache.link(commit, file, &metadata.etag).map_err(|error| self.disk_error(&error))
    }

    fn ensure_blob(
        &self,
        client: &Client,
        url: &str,
        metadata: &Metadata,
        file: &str,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        let blob = self.cache.blob(&metadata.etag);
        if blob.exists() {
            return Ok(());
        }
        create_parent(&blob).map_err(|error| self.disk_error(&error))?;
        let waits = || progress(Download { waits: true, ..Download::begun(file) });
        let lock = self.cache.lock(&metadata.etag, waits).map_err(|error| self.disk_error(&error))?;
        // The process that held the lock may have finished the blob.
        if blob.exists() {
            return Ok(());
        }
        let incomplete = match lock {
            Some(_) => format!("{}.incomplete", metadata.etag),
            // Without locks a partial file cannot be shared: each process uses its own and never resumes it.
            None => format!("{}.{}.incomplete", metadata.etag, std::process::id()),
        };
        let incomplete = blob.with_file_name(incomplete);
        fetch(client, url, metadata, incomplete, &blob, file, progress).map_err(|error| match error {
            FetchError::Hub(fault) => fault.into_error(self.subject(Some(file))),
            FetchError::Disk(error) => self.disk_error(&error),
            FetchError::Corrupt(why) => {
                Error::failure(format!("the download of `{file}` of `{}` is corrupt: {why}", self.model))
                    .hint("run the command again; if the error persists, a proxy or the mirror in `HF_ENDPOINT` alters the file")
            }
        })
    }

    fn subject<'s>(&'s self, file: Option<&'s str>) -> Subject<'s> {
        let HubOptions { endpoint, revision, .. } = self.options;
        Subject { endpoint: without_password(endpoint), model: self.model, revision, file }
    }

    fn disk_error(&self, error: &io::Error) -> Error {
        let cache = self.options.cache_dir.display();
        let failed = Error::failure(format!("cannot store `{}` in the cache `{cache}`: {error}", self.model));
        failed.hint(match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                "free some space, or set `HF_HOME` to a folder on a larger disk; the partial download is kept and resumed"
            }
            _ => "set `HF_HOME` to a writable folder",
        })
    }
}

/// Repeats `request`, for `what`, as long as there is hope and `repeats` agrees.
fn patiently<T>(
    client: &Client,
    what: &str,
    progress: &mut dyn FnMut(Download<'_>),
    repeats: impl Fn(&Fault) -> bool,
    request: impl Fn() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut patience = Patience::new(client.patience());
    loop {
        let fault = match request() {
            Err(fault) if repeats(&fault) => fault,
            end => return end,
        };
        let Some(pause) = patience.pause(&fault) else { return Err(fault) };
        progress(Download { pause: Some(pause), ..Download::begun(what) });
        std::thread::sleep(pause);
    }
}
