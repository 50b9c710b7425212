//! The output files of a run. Their paths are determined and tested before any work, and a file appears only when it
//! is complete.

mod exif;
mod gif;
mod h264;
mod jpeg;
mod latents;
mod mp4;
mod picture;
mod png;
mod webp;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use xdit_core::{Error, Result};

use crate::args::OutputType;
use crate::interrupt;

pub use latents::{decode_latents, finish_latents, put_latents};
pub use picture::{
    FRAMES_PER_SECOND, check_format, check_frames, encode, holds_parameters, is_picture, read_parameters,
};

/// The output files of a run.
#[derive(Debug)]
pub struct Outputs {
    /// One path for each picture, or one for all latents.
    pub paths: Vec<PathBuf>,
    /// A file that will be replaced although the options do not name it.
    pub replaced: Option<PathBuf>,
}

impl Outputs {
    /// Determines the paths of pictures with `seeds`, and checks that they can be written.
    ///
    /// `{i}` and `{seed}` in the path are replaced by the index and seed of the picture. Without them, the file in
    /// a folder is called `xdit.png`, and several pictures get `-0`, `-1`, … before the extension. `{frame}` stays, for
    /// [`files`](Self::files).
    ///
    /// # Errors
    /// If the extension does not match `output_type`, or a file cannot be written.
    pub fn plan(output: Option<&Path>, output_type: OutputType, seeds: &[u64]) -> Result<Self> {
        if output.is_some_and(is_standard) {
            return match (output_type, seeds) {
                (OutputType::Latent, _) => Err(Error::usage("latents are not written to standard output")
                    .hint("name a `.safetensors` file, which is written piece by piece")),
                (_, [_]) => Ok(Self { paths: vec![PathBuf::from(STANDARD)], replaced: None }),
                _ => Err(Error::usage(format!("`{}` pictures do not fit into standard output", seeds.len()))
                    .hint("make one at a time, or name files with `{i}`")),
            };
        }
        let extensions = output_type.extensions();
        let mut path = output.unwrap_or(Path::new("")).to_owned();
        let is_folder = path.as_os_str().is_empty() || path.is_dir() || ends_with_separator(&path);
        if is_folder {
            path.push(format!("xdit.{}", extensions[0]));
        }
        let fits = |found: &OsStr| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension));
        if path.extension().is_some_and(|found| !fits(found)) {
            return Err(Error::usage(format!("output `{}` does not end in `.{}`", path.display(), extensions[0]))
                .hint("the endings `.png`, `.jpg`, `.webp`, `.gif`, `.mp4` and, for latents, `.safetensors` choose a format, and so does `--output-type`"));
        }
        if output_type == OutputType::Latent && path.to_string_lossy().contains(FRAME) {
            return Err(Error::usage(format!("output `{}` names a file for each frame", path.display()))
                .hint("leave out `{frame}`: the latents of all frames share one file"));
        }
        let files = if output_type == OutputType::Latent { 1 } else { seeds.len() };
        if path.to_str().is_none() && (files > 1 || path.to_string_lossy().contains('{')) {
            return Err(Error::usage(format!(
                "output `{}` is not UTF-8, so no numbers fit in",
                path.display()
            ))
            .hint("choose a path in UTF-8"));
        }
        let paths = (0..files)
            .map(|index| name(&path, index, files, seeds[index]))
            // Of a clip, only the paths of frames are those of files.
            .map(|path| if has_frames(&path) { Ok(path) } else { target(&path) })
            .collect::<Result<Vec<PathBuf>>>()?;
        let mut sorted: Vec<&PathBuf> = paths.iter().collect();
        sorted.sort();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::usage(format!(
                "several pictures would be written to `{}`",
                twice[0].display()
            ))
            .hint("tell them apart by `{i}` in the path"));
        }
        let replaced = paths.iter().find(|path| is_folder && path.exists()).cloned();
        let outputs = Self { paths, replaced };
        outputs.check(1)?;
        Ok(outputs)
    }

    /// Tests the paths of pictures, or of clips of `frames`, before the run, so that a mistyped path does not cost hours of
    /// work.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn check(&self, frames: usize) -> Result<()> {
        let _writing = interrupt::writing();
        let mut folders: Vec<PathBuf> = Vec::new();
        for index in 0..self.paths.len() {
            for path in self.files(index, frames)? {
                let folder = folder_of(&path);
                if !is_standard(&path) && !folders.iter().any(|known| known == folder) {
                    temporary(&path)?;
                    folders.push(folder.to_owned());
                }
            }
        }
        Ok(())
    }

    /// A warning, if a file will be replaced that the options do not name.
    pub fn warning(&self) -> Option<String> {
        let path = self.replaced.as_ref()?.display();
        Some(format!("`{path}` exists and will be replaced; `--output` names another file"))
    }

    /// The path of the preview of picture `index`: `a.preview.png` for `a.png`, and `xdit.preview.png` for standard output. A
    /// clip has one preview, with the number of the first frame if frames have files of their own.
    ///
    /// # Errors
    /// If it names no file that can be written.
    pub fn preview(&self, index: usize) -> Result<PathBuf> {
        let path = Some(self.path(index)).filter(|path| !is_standard(path)).unwrap_or(Path::new("xdit.png"));
        target(&of_frame(path, 0, 1).with_extension("preview.png"))
    }

    /// Whether each frame of a clip has a file of its own.
    pub fn splits_clips(&self) -> bool {
        self.paths.iter().any(|path| has_frames(path))
    }

    /// The files of picture `index`: one, or one for each of `frames`, if they have files of their own.
    ///
    /// # Errors
    /// If one of them names no file that can be written.
    pub fn files(&self, index: usize, frames: usize) -> Result<Vec<PathBuf>> {
        let path = self.path(index);
        match has_frames(path) {
            true => (0..frames).map(|frame| target(&of_frame(path, frame, frames))).collect(),
            false => Ok(vec![path.to_owned()]),
        }
    }

    /// The path of picture `index`; all latents share one file.
    pub fn path(&self, index: usize) -> &Path {
        &self.paths[index.min(self.paths.len() - 1)]
    }
}

/// The path that stands for standard output.
const STANDARD: &str = "-";

/// Whether `path` stands for standard output.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new(STANDARD)
}

/// Checks that `path` can be written, and returns the path of the file: a link to a file stays a link.
///
/// # Errors
/// If it cannot be written.
pub fn check_file(path: &Path) -> Result<PathBuf> {
    let _writing = interrupt::writing();
    let path = target(path)?;
    temporary(&path)?;
    Ok(path)
}

/// The most bytes in the name of a file, on the common file systems.
const MAX_NAME: usize = 255;

/// The regular file that `path` names, directly or by links, or `path` if there is nothing yet.
///
/// A finished file is renamed to its path. That would replace a device or a pipe.
fn target(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    if path.file_name().is_some_and(|name| name.len() > MAX_NAME) {
        return Err(Error::usage(format!("the name of output `{shown}` has more than {MAX_NAME} bytes"))
            .hint("choose a shorter name: numbers and the end of a preview count, too"));
    }
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    let (target, found) = if found.is_symlink() {
        let target = fs::canonicalize(path).and_then(|target| Ok((fs::metadata(&target)?, target)));
        let (found, target) = target.map_err(|_| {
            Error::usage(format!("output `{shown}` is a link that leads nowhere"))
                .hint("remove the link, or choose another path")
        })?;
        (target, found)
    } else {
        (path.to_owned(), found)
    };
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(target),
        (_, true) => {
            Err(Error::usage(format!("output `{shown}` is a folder")).hint("choose the path of a file"))
        }
        _ => Err(Error::usage(format!("output `{shown}` is a device or a pipe"))
            .hint("choose the path of a file: results are written beside it and renamed")),
    }
}

/// Writes a file, which appears only when it is complete.
///
/// # Errors
/// If it cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_files([(path, bytes)])
}

/// Writes several files; none of them gets its final name before all have been written.
///
/// # Errors
/// If a file cannot be written.
pub fn write_files<'a>(contents: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<()> {
    let _writing = interrupt::writing();
    let mut files = Vec::new();
    for (path, bytes) in contents {
        let mut file = temporary(path)?;
        file.write_all(bytes).map_err(|error| unwritable(path, &error))?;
        // A clip may have more frames than a process may have files open.
        files.push((path, file.into_temp_path()));
    }
    for (path, file) in files {
        file.persist(path).map_err(|error| unwritable(path, &error.error))?;
    }
    Ok(())
}

/// The path of picture `index` of `files`.
fn name(path: &Path, index: usize, files: usize, seed: u64) -> PathBuf {
    let text = path.to_string_lossy();
    if text.contains("{i}") || text.contains("{seed}") {
        return text.replace("{i}", &index.to_string()).replace("{seed}", &seed.to_string()).into();
    }
    if files == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{index}{extension}"))
}

/// What stands for the number of a frame in a path.
const FRAME: &str = "{frame}";

/// Whether `path` stands for the files of all frames.
fn has_frames(path: &Path) -> bool {
    path.to_string_lossy().contains(FRAME)
}

/// The path of a `frame` of `count`. All numbers have as many digits, so that names are in the order of frames.
fn of_frame(path: &Path, frame: usize, count: usize) -> PathBuf {
    if !has_frames(path) {
        return path.to_owned();
    }
    let digits = count.saturating_sub(1).to_string().len();
    path.to_string_lossy().replace(FRAME, &format!("{frame:0digits$}")).into()
}

/// Creates a temporary file beside `path`, which is removed unless it is persisted.
fn temporary(path: &Path) -> Result<NamedTempFile> {
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".xdit-").suffix(".tmp");
    // Temporary files are private by default, but results get the same permissions as any new file of the user.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder).map_err(|error| unwritable(path, &error))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The error for `path`. The original error would name the temporary file, which means nothing to the user.
fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    let folder = folder_of(path);
    let shown = folder.display();
    let (reason, hint) = match fs::metadata(folder) {
        Err(_) => (format!("there is no folder `{shown}`"), "create the folder first"),
        Ok(found) if !found.is_dir() => (format!("`{shown}` is not a folder"), "choose another path"),
        Ok(_) if error.kind() == std::io::ErrorKind::FileTooLarge => (
            error.kind().to_string(),
            "raise the limit on the size of files (`ulimit -f`), or choose another disk",
        ),
        Ok(_) => (error.kind().to_string(), "choose a writable folder with enough space"),
    };
    Error::failure(format!("cannot write `{}`: {reason}", path.display())).hint(hint)
}

fn ends_with_separator(path: &Path) -> bool {
    path.to_string_lossy().ends_with(std::path::is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(output: &str, images: usize) -> Vec<String> {
        let seeds: Vec<u64> = (7..7 + images as u64).collect();
        let outputs = Outputs::plan(Some(Path::new(output)), OutputType::Png, &seeds).unwrap();
        outputs.paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn names_follow_the_path() {
        assert_eq!(names("", 1), ["xdit.png"]);
        assert_eq!(names("", 2), ["xdit-0.png", "xdit-1.png"]);
        assert_eq!(names("a.png", 1), ["a.png"]);
        assert_eq!(names("a.b.PNG", 2), ["a.b-0.PNG", "a.b-1.PNG"]);
        assert_eq!(names("a", 2), ["a-0", "a-1"]);
        assert_eq!(names("src", 1), ["src/xdit.png"]);
        assert_eq!(names("src/", 2), ["src/xdit-0.png", "src/xdit-1.png"]);
        assert_eq!(names("{seed}-{i}.png", 2), ["7-0.png", "8-1.png"]);
    }

    #[test]
    fn frames_are_numbered() {
        let plan = |output: &str, output_type, images: u64| {
            Outputs::plan(Some(Path::new(output)), output_type, &(0..images).collect::<Vec<_>>())
        };
        let frames = |output: &str, images, index, count| -> Vec<String> {
            let outputs = plan(output, OutputType::Png, images).unwrap();
            assert!(outputs.splits_clips());
            let paths = outputs.files(index, count).unwrap();
            paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(frames("{frame}.png", 1, 0, 3), ["0.png", "1.png", "2.png"]);
        assert_eq!(frames("a{frame}.png", 2, 1, 2), ["a0-1.png", "a1-1.png"]);
        assert_eq!(
            frames("src/{i}-{frame}.png", 2, 1, 11)[..3],
            ["src/1-00.png", "src/1-01.png", "src/1-02.png"]
        );
        assert!(!plan("a.png", OutputType::Png, 1).unwrap().splits_clips());
        assert_eq!(
            plan("{frame}.safetensors", OutputType::Latent, 1).unwrap_err().message(),
            "output `{frame}.safetensors` names a file for each frame"
        );
        let preview = plan("src/{i}-{frame}.png", OutputType::Png, 2).unwrap().preview(1).unwrap();
        assert_eq!(preview, Path::new("src/1-0.preview.png"));
    }

    #[test]
    fn previews_lie_beside_pictures() {
        let preview = |output: &str, output_type| {
            let outputs = Outputs::plan(Some(Path::new(output)), output_type, &[0, 1])?;
            outputs.preview(1).map(|path| path.to_string_lossy().into_owned())
        };
        assert_eq!(preview("src/a.jpg", OutputType::Jpeg).unwrap(), "src/a-1.preview.png");
        assert_eq!(preview("a.safetensors", OutputType::Latent).unwrap(), "a.preview.png");
        assert_eq!(preview("a", OutputType::Png).unwrap(), "a-1.preview.png");
        assert_eq!(
            preview("-", OutputType::Png).map_err(|error| error.message().to_owned()).unwrap_err(),
            "`2` pictures do not fit into standard output"
        );
        let long = format!("{}.png", "x".repeat(249));
        assert!(preview(&long, OutputType::Png).unwrap_err().message().ends_with("has more than 255 bytes"));
    }

    #[test]
    fn checks_and_failures_leave_no_files_behind() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::plan(Some(dir.path()), OutputType::Png, &[0, 1]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // After the check, the second path is taken by a folder: only complete files may exist.
        fs::create_dir(&outputs.paths[1]).unwrap();
        write_file(outputs.path(0), &[1]).unwrap();
        write_file(outputs.path(1), &[2]).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn results_have_the_permissions_of_ordinary_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::plan(Some(dir.path()), OutputType::Png, &[0]).unwrap();
        write_file(outputs.path(0), &[1]).unwrap();
        let ordinary = dir.path().join("ordinary");
        fs::write(&ordinary, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(outputs.path(0)), mode(&ordinary));
    }
}
