//! Where NVIDIA's libraries lie.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::Library;

/// Opens a library: the file that the variable `variable` names or, without it, the first of `names` that the system's
/// loader, the CUDA toolkit or the packages of a Python installation (below `nvidia/*/lib`) have.
pub(super) fn open(variable: &str, names: &[&str]) -> Result<(Library, String), String> {
    candidates(variable, names, |file| load(file))
}

/// As [`open`], with `load` for opening a file.
pub(crate) fn candidates<L>(
    variable: &str,
    names: &[&str],
    load: impl Fn(&OsStr) -> Result<L, String>,
) -> Result<(L, String), String> {
    if let Some(file) = std::env::var_os(variable) {
        let shown = file.to_string_lossy().into_owned();
        return match load(&file) {
            Ok(library) => Ok((library, shown)),
            Err(error) => Err(format!("`{variable}` is `{shown}`: {error}")),
        };
    }
    for name in names {
        if let Ok(library) = load(OsStr::new(name)) {
            return Ok((library, (*name).to_owned()));
        }
    }
    for file in folders().iter().flat_map(|folder| names.iter().map(|name| folder.join(name))) {
        let found = Some(&file).filter(|file| file.is_file());
        if let Some(library) = found.and_then(|file| load(file.as_os_str()).ok()) {
            return Ok((library, file.display().to_string()));
        }
    }
    Err(format!("`{}` was not found; `{variable}` can name its file", names[0]))
}

fn load(file: impl AsRef<std::ffi::OsStr>) -> Result<Library, String> {
    // SAFETY: opening one of NVIDIA's libraries runs its start-up code, which asks nothing of the program.
    unsafe { Library::new(file.as_ref()) }.map_err(|error| error.to_string())
}

/// Folders outside the loader's own search.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let toolkit = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    for toolkit in toolkit.into_iter().chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from)) {
        folders.extend(["lib64", "targets/x86_64-linux/lib", "lib"].map(|folder| toolkit.join(folder)));
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let environments = [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")].into_iter().flatten();
    let home = variable("HOME").map(|home| home.join(".local"));
    let roots = environments.chain(home).chain(["/usr/local", "/usr"].map(PathBuf::from));
    let mut packages: Vec<PathBuf> =
        std::env::var_os("PYTHONPATH").iter().flat_map(std::env::split_paths).collect();
    for root in roots {
        // `lib/python3.12/site-packages`, and `dist-packages` of Debian.
        for python in entries(&root.join("lib")) {
            let name = python.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("python3") {
                packages.extend(["site-packages", "dist-packages"].map(|folder| python.join(folder)));
            }
        }
    }
    for package in packages {
        folders.extend(entries(&package.join("nvidia")).into_iter().map(|wheel| wheel.join("lib")));
    }
    folders
}

/// What lies in `folder`, in order; nothing, if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named() {
        let error = open("XDIT_NO_SUCH_VARIABLE", &["libno-such-library.so.13"]).unwrap_err();
        assert_eq!(
            error,
            "`libno-such-library.so.13` was not found; `XDIT_NO_SUCH_VARIABLE` can name its file"
        );
    }

    #[test]
    fn the_systems_own_libraries_are_found() {
        let (_library, name) =
            open("XDIT_NO_SUCH_VARIABLE", &["libno-such-library.so", "libm.so.6"]).unwrap();
        assert_eq!(name, "libm.so.6");
    }
}
