//! What the CUDA driver says of its devices.

use std::path::PathBuf;

use cubecl_environment::config::RuntimeConfig;
use cubecl_environment::persistence::CacheConfig;
use cubecl_runtime::config::CubeClRuntimeConfig;
use cudarc::driver::{result, sys};

use super::{Memory, Missing};

/// Checks that kernels can be compiled and run.
pub(super) fn check() -> Result<(), Missing> {
    // SAFETY: the call tries to open the library under its known names; opening it runs the driver's own start-up code.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::NoDevice);
    }
    let devices = result::init().and_then(|()| result::device::get_count());
    match devices {
        Ok(0) | Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(Missing::NoDevice);
        }
        Err(error) => return Err(Missing::Driver(words(&error))),
        Ok(_) => {}
    }
    // SAFETY: as above, of the compiler's library.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(Missing::Compiler("libnvrtc"));
    }
    let toolkit = cubecl::cuda::install::cuda_path().unwrap_or_else(|| PathBuf::from("/usr/local/cuda"));
    let headers = toolkit.join("include");
    if !["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"].iter().all(|header| headers.join(header).is_file()) {
        return Err(Missing::Headers(headers.display().to_string()));
    }
    Ok(())
}

/// Makes CubeCL keep compiled kernels in the user's cache folder, so that only the first run on a machine compiles them.
///
/// The program's own settings hold if it has made any, and those of a file `cubecl.toml`, except that kernels are kept.
pub(super) fn keep_kernels() {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    if matches!(config.environment.path, CacheConfig::Target) {
        config.environment.path = CacheConfig::Global;
    }
    // Nothing changes if a device has been opened before.
    let _ = CubeClRuntimeConfig::try_set(config);
}

fn words(error: &result::DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("{error:?}"),
    }
}

/// The memory of device `index`.
pub(super) fn memory(index: usize) -> Option<Memory> {
    let bytes = || -> Result<(usize, usize), result::DriverError> {
        result::init()?;
        let device = result::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
        let before = result::ctx::get_current()?;
        // SAFETY: the device was found by the driver. Its primary context is what all libraries of the process share; it
        // is held while it is current, and the context that was current before is current again afterwards.
        unsafe {
            let context = result::primary_ctx::retain(device)?;
            let bytes = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
            result::ctx::set_current(before.unwrap_or(std::ptr::null_mut()))?;
            result::primary_ctx::release(device)?;
            bytes
        }
    };
    let (free, total) = bytes().ok()?;
    Some(Memory { total_bytes: total as u64, free_bytes: free as u64 })
}
