//! One repository's folder in the cache, in the layout of Python's `huggingface_hub`.
//!
//! ```text
//! models--owner--name/refs/main                            the commit of `main` at the last request
//! models--owner--name/blobs/<etag>                         file contents, named by their hash
//! models--owner--name/snapshots/<commit>/vae/config.json   a link to ../../../blobs/<etag>
//! .locks/models--owner--name/<etag>.lock                   held during the download of a blob
//! ```

use super::select::{MODEL_INDEX, ModelIndex, select};
use super::{HubOptions, MAX_SMALL_BYTES};
use crate::{Result, files};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The cached files of one model.
pub(super) struct RepoCache {
    /// `owner/name`
    model: String,
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, model: &str) -> Self {
        let folder = format!("models--{}", model.replace('/', "--"));
        Self {
            model: model.to_owned(),
            root: cache_dir.join(&folder),
            locks: cache_dir.join(".locks").join(folder),
        }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The commit of `revision` at the last request.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = files::read(&self.root.join("refs").join(revision), 1 << 10).ok()?;
        Some(String::from_utf8(commit).ok()?.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of `revision`.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        // Renamed into place, because another process may read it at any time.
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = open_own(&fresh, &mut OpenOptions::new())?;
        file.set_len(0)?;
        file.write_all(commit.as_bytes())?;
        fs::rename(&fresh, &path)
    }

    /// Returns the snapshot of `commit` if it has every file that the model needs.
    pub(super) fn complete_snapshot(&self, commit: &str, options: &HubOptions) -> Result<PathBuf> {
        let folder = self.snapshot(commit);
        let text = files::read(&folder.join(MODEL_INDEX), MAX_SMALL_BYTES).map_err(|error| {
            let why =
                format!("the `{MODEL_INDEX}` of `{}` is not in the cache: {}", self.model, error.message());
            error.reworded(why)
        })?;
        let text = String::from_utf8_lossy(&text);
        let index = ModelIndex::parse(&self.model, &text)?.changed(&options.without, &options.with);
        select(&self.model, &index, &files_of(&folder), options.variant.as_deref())?;
        Ok(folder)
    }

    /// Links `file` of the snapshot to an existing blob.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<()> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        // A dangling link, left after the cache was cleaned, must be removed first.
        if pointer.is_symlink() && !pointer.exists() {
            fs::remove_file(&pointer)?;
        }
        // Relative, so that the cache can be moved: up through the folders of `file`, the commit and `snapshots`.
        let up = "../".repeat(file.matches('/').count() + 2);
        match symlink(&format!("{up}blobs/{etag}"), &self.blob(etag), &pointer) {
            // Another process created it first.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    }

    /// Waits until no other process is downloading this blob; dropping the returned file releases the lock. `waits` is
    /// called if there is such a process.
    ///
    /// Returns `None` if the file system does not support locks. Python's `filelock` takes the same lock.
    pub(super) fn lock(&self, etag: &str, waits: impl FnOnce()) -> io::Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = open_own(&path, &mut OpenOptions::new())?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                waits();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            Ok(()) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether `revision` is the full hash of a commit, and therefore always refers to the same contents.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The free space on the disk of `folder` or of the nearest folder above it that exists, if the system reports it.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Opens `path` for writing, and creates it if it is absent. It must be a regular file: in a shared cache, somebody else might
/// have left a link to a file of this user, or a pipe.
pub(super) fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let strange = || io::Error::other(format!("`{}` is a link or a special file", path.display()));
    if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        return Err(strange());
    }
    // A link that came since then is not followed, and a pipe is not waited for.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        options,
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32,
    );
    let file = options.write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(strange()) }
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// The files of a snapshot and its immediate folders, as `folder/name`; dangling links are skipped.
pub(super) fn files_of(snapshot: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<(String, PathBuf)> {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.file_name().into_string().ok()?, entry.path()))
            })
            .collect()
    };
    let mut files = Vec::new();
    for (name, path) in names(snapshot) {
        if path.is_dir() {
            let inside = names(&path).into_iter().filter(|(_, path)| path.is_file());
            files.extend(inside.map(|(file, _)| format!("{name}/{file}")));
        } else if path.is_file() {
            files.push(name);
        }
    }
    files
}

#[cfg(unix)]
fn symlink(target: &str, _blob: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

/// Creating symbolic links needs privileges on Windows, so the snapshot shares the blob's contents by a hard link.
#[cfg(not(unix))]
fn symlink(_target: &str, blob: &Path, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer)
}
