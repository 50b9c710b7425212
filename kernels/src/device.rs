//! The devices of this machine: which there are, what is known of them, and why others cannot be used.

#[cfg(feature = "cuda")]
mod cuda;

use burn::tensor::Device;

/// A way to reach devices beside the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// NVIDIA's own.
    Cuda,
    /// Vulkan, with kernels in SPIR-V.
    Vulkan,
    /// The graphics interface that the system has, with kernels in WebGPU's language.
    Wgpu,
}

impl Api {
    /// All of them, best first.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Vulkan, Self::Wgpu];

    /// The name, which is that of the cargo feature, too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }
}

/// A device that can compute.
#[derive(Clone, Debug)]
pub struct Found {
    /// The device.
    pub device: Device,
    /// Whether it is a program that poses as a graphics card.
    pub software: bool,
}

/// The reason why an interface has no devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The cargo feature of its name is off.
    NotCompiled,
    /// There is no driver, or it has no device.
    NoDevice,
    /// The driver fails; in its own words.
    Driver(String),
    /// The library that compiles kernels, by its name.
    Compiler(&'static str),
    /// The files that kernels include are missing from this folder.
    Headers(String),
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What no program holds.
    pub free_bytes: u64,
}

/// The devices that `api` reaches. None of them is opened.
///
/// # Errors
/// If there is none that can compute.
pub fn list(api: Api) -> Result<Vec<Found>, Missing> {
    match api {
        #[cfg(feature = "cuda")]
        Api::Cuda => cuda::check().and_then(|()| {
            cuda::keep_kernels();
            found(burn::tensor::DeviceType::Cuda, None)
        }),
        #[cfg(feature = "vulkan")]
        Api::Vulkan => {
            found(burn::tensor::DeviceType::Vulkan, Some(Device::vulkan(burn::tensor::DeviceKind::Cpu)))
        }
        #[cfg(feature = "wgpu")]
        Api::Wgpu => found(burn::tensor::DeviceType::Wgpu, Some(Device::wgpu(burn::tensor::DeviceKind::Cpu))),
        #[cfg(not(all(feature = "cuda", feature = "vulkan", feature = "wgpu")))]
        _ => Err(Missing::NotCompiled),
    }
}

/// The devices of an interface, one of which may be a program.
#[cfg(feature = "cube")]
fn found(kind: burn::tensor::DeviceType, program: Option<Device>) -> Result<Vec<Found>, Missing> {
    let devices = Device::enumerate(kind).into_vec();
    if devices.is_empty() {
        return Err(Missing::NoDevice);
    }
    let found = |device| Found { software: program.as_ref() == Some(&device), device };
    Ok(devices.into_iter().map(found).collect())
}

/// A library of a device's maker that takes the place of a kernel where it is found.
#[derive(Clone, Debug)]
pub struct Library {
    /// Its name.
    pub name: &'static str,
    /// The operations that it carries out.
    pub purpose: &'static str,
    /// Its version and place, or why it is not used.
    pub state: Result<String, String>,
}

/// The makers' libraries that this build can use. They are opened for this.
pub fn libraries() -> Vec<Library> {
    #[cfg(feature = "cuda")]
    if list(Api::Cuda).is_ok() {
        return crate::vendor::libraries();
    }
    Vec::new()
}

/// Opens one of NVIDIA's libraries with `load`: the file that the variable `variable` names or, without it, the first of
/// `names` that the system's loader, the CUDA toolkit or the packages of a Python installation have. Returns its place,
/// too.
///
/// # Errors
/// If there is none.
#[cfg(feature = "cuda")]
pub fn open_library<L>(
    variable: &str,
    names: &[&str],
    load: impl Fn(&std::ffi::OsStr) -> Result<L, String>,
) -> Result<(L, String), String> {
    crate::vendor::candidates(variable, names, load)
}

/// What `device` is called by its driver. It is opened for this; the CPU has no such name.
pub fn hardware_name(device: &Device) -> Option<String> {
    #[cfg(feature = "cube")]
    return device.identity().map(|identity| identity.name);
    #[cfg(not(feature = "cube"))]
    Some(device).filter(|device| **device != Device::flex()).map(|device| format!("{device:?}"))
}

/// The memory of `device`, if its interface shows it: CUDA does.
pub fn memory(device: &Device) -> Option<Memory> {
    #[cfg(feature = "cuda")]
    if let Some(index) = cuda_index(device) {
        return cuda::memory(index);
    }
    let _ = device;
    None
}

/// The place of `device` among those of CUDA, if it is one.
#[cfg(feature = "cuda")]
pub fn cuda_index(device: &Device) -> Option<usize> {
    match device.as_dispatch() {
        burn::backend::DispatchDevice::Cube(cubecl::Device::Cuda(device)) => Some(device.index),
        _ => None,
    }
}
