//! Reads files that others made: regular ones only, up to a limit, and with the reason if one is not what it should be.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// The first bytes of a file that Git LFS leaves in place of a large one.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The number of the error of a process that has as many files open as it may have, `EMFILE`.
const TOO_MANY_FILES: i32 = 24;

/// Opens the regular file `path`, and returns it with its length. A pipe or a device might have no end.
///
/// # Errors
/// If it does not exist, is no regular file, or cannot be read.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        let failure = Error::failure(format!("cannot read `{shown}`: {error}"));
        match error.raw_os_error() {
            Some(TOO_MANY_FILES) if cfg!(unix) => failure.hint("raise the limit on open files (`ulimit -n`)"),
            _ => failure,
        }
    };
    // Looked at before it is opened: opening a pipe waits for its other end.
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.is_symlink() => {
            let target = fs::read_link(path).unwrap_or_default();
            return Err(Error::failure(format!(
                "`{shown}` is a link to `{}`, which does not exist",
                target.display()
            ))
            .hint("download the file again, or mend the link"));
        }
        found => found.map_err(unreadable)?,
    };
    if !found.is_file() {
        let what = if found.is_dir() { "a folder" } else { "a device or a pipe" };
        return Err(
            Error::failure(format!("cannot read `{shown}`: it is {what}")).hint("give a regular file")
        );
    }
    Ok((File::open(path).map_err(unreadable)?, found.len()))
}

/// The bytes of the regular file `path`, of which there are at most `limit`.
///
/// # Errors
/// As [`open`], and if it is longer or a pointer of Git LFS.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (mut file, _) = open(path)?;
    let bytes = read_to_end(&mut file, &format!("`{}`", path.display()), limit)?;
    match is_lfs_pointer(&bytes) {
        true => Err(lfs_pointer(path)),
        false => Ok(bytes),
    }
}

/// The bytes of `source`, of which there are at most `limit`. Errors call it `name`.
///
/// # Errors
/// If it cannot be read, or is longer.
pub fn read_to_end(source: &mut dyn Read, name: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::failure(format!("cannot read {name}: {error}")))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::failure(format!("{name} has more than {limit} bytes, the limit of such a file"))),
        false => Ok(bytes),
    }
}

/// Whether a file with these first bytes only stands for a large one that Git LFS has not fetched.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(LFS_POINTER)
}

/// The error for a pointer of Git LFS.
pub fn lfs_pointer(path: &Path) -> Error {
    Error::failure(format!("`{}` is a pointer of Git LFS, not the file itself", path.display()))
        .hint("run `git lfs pull` in the folder, or give the model by its id on the hub")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_limited_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(
            read(&path, 4)
                .unwrap_err()
                .message()
                .ends_with("has more than 4 bytes, the limit of such a file")
        );
        assert!(read(dir.path(), 4).unwrap_err().message().ends_with("it is a folder"));
        fs::write(&path, [LFS_POINTER, b"v1\noid sha256:0\nsize 7\n"].concat()).unwrap();
        assert!(read(&path, 999).unwrap_err().message().contains("is a pointer of Git LFS"));
        #[cfg(unix)]
        {
            let error = read(Path::new("/dev/zero"), 999).unwrap_err();
            assert_eq!(error.message(), "cannot read `/dev/zero`: it is a device or a pipe");
            let link = dir.path().join("link");
            std::os::unix::fs::symlink("nowhere", &link).unwrap();
            let error = read(&link, 999).unwrap_err();
            assert!(error.message().ends_with("is a link to `nowhere`, which does not exist"), "{error}");
        }
    }
}
