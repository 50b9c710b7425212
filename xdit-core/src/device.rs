//! Devices by name: `auto`, `cpu`, `cuda`, `vulkan:1`.

use burn::tensor::{DType, Device};
use xdit_kernels::device::{Api, Missing, list};
pub use xdit_kernels::device::{Library, Memory, hardware_name, memory};

use crate::error::{Error, Result};

/// Devices that people ask for by other names, or that no backend is for.
const OTHERS: [&str; 7] = ["directml", "gpu", "metal", "mps", "rocm", "webgpu", "xpu"];

/// The device called `name`:
///
/// - `cpu`;
/// - `cuda`, `vulkan` or `wgpu`, the first device of an interface, or one of several as in `cuda:1`;
/// - `auto`, the best that this build finds: an NVIDIA GPU, or a GPU by Vulkan or WebGPU, or the CPU. A program that
///   poses as a GPU is none.
///
/// # Errors
/// If there is no such name, or the device cannot be used here; why, and what helps.
pub fn find(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    if name == "auto" {
        let real = Api::ALL.iter().filter_map(|&api| list(api).ok()).flatten().find(|found| !found.software);
        return Ok(real.map_or_else(Device::flex, |found| found.device));
    }
    let (interface, index) = match name.split_once(':') {
        Some((interface, index)) => (interface, Some(index)),
        None => (name, None),
    };
    let Some(api) = Api::ALL.into_iter().find(|api| api.name() == interface) else {
        let message = match OTHERS.contains(&interface) {
            true => format!("there is no backend for device `{name}`"),
            false => format!("unknown device `{name}`"),
        };
        return Err(Error::usage(message).hint(
            "possible values: `auto`, `cpu`, `cuda`, `vulkan`, `wgpu`, or one of several as in `cuda:1`",
        ));
    };
    let Ok(index) = index.unwrap_or("0").parse::<usize>() else {
        return Err(Error::usage(format!("unknown device `{name}`"))
            .hint(format!("devices are counted from `{interface}:0`; `xdit devices` lists them")));
    };
    let found = list(api).map_err(|missing| {
        let (reason, way_out) = explain(api, &missing);
        Error::usage(format!("device `{name}` cannot be used: {reason}")).hint(way_out)
    })?;
    let count = found.len();
    let device = found.into_iter().nth(index).map(|found| found.device);
    device.ok_or_else(|| {
        let (devices, range) = match count {
            1 => ("device", format!("use `{interface}`")),
            _ => ("devices", format!("use `{interface}:0` to `{interface}:{}`", count - 1)),
        };
        Error::usage(format!("there is no device `{name}`: {interface} has {count} {devices}")).hint(range)
    })
}

/// The devices of `ranks` ranks, by names as [`find`] takes them: one for each rank, or one for all. `cuda:0,2` names
/// several. `cuda`, and `auto` where that is CUDA, stand for the first GPUs if there is one for each rank.
///
/// # Errors
/// As [`find`], and if fewer devices are named than there are ranks, or one twice.
pub fn find_each(name: &str, ranks: usize) -> Result<Vec<Device>> {
    let Some((interface, indices)) = name.split_once(':').filter(|(_, indices)| indices.contains(',')) else {
        let first = find(name)?;
        let of_cuda = name == "cuda" || name == "auto";
        return Ok(match list(Api::Cuda) {
            Ok(found) if of_cuda && found.len() >= ranks && found[0].device == first => {
                found.into_iter().take(ranks).map(|found| found.device).collect()
            }
            _ => vec![first],
        });
    };
    let names: Vec<String> = indices.split(',').map(|index| format!("{interface}:{index}")).collect();
    let devices = names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
    if let Some(twice) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
        return Err(Error::usage(format!("`{name}` names device `{}` twice", names[twice]))
            .hint(format!("ranks share a device only if it is the only one, as in `{interface}:0`")));
    }
    if devices.len() < ranks {
        return Err(Error::usage(format!("`{name}` names {} devices for {ranks} ranks", devices.len()))
            .hint("name a device for each rank, or a single one for all"));
    }
    Ok(devices.into_iter().take(ranks).collect())
}

/// The makers' libraries that this build can use. They are opened for this.
pub fn libraries() -> Vec<Library> {
    let libraries = xdit_kernels::device::libraries();
    #[cfg(feature = "cuda")]
    let libraries = {
        let mut libraries = libraries;
        if list(Api::Cuda).is_ok() {
            let state = nccl().map(|(nccl, place)| format!("{} from `{place}`", nccl.version()));
            libraries.push(Library { name: "NCCL", purpose: "transfers between GPUs", state });
        }
        libraries
    };
    libraries
}

/// NCCL and its place. It is opened once.
///
/// # Errors
/// If it is missing or too old.
#[cfg(feature = "cuda")]
pub(crate) fn nccl() -> Result<&'static (std::sync::Arc<xdit_comm::nccl::Nccl>, String), String> {
    type Opened = Result<(std::sync::Arc<xdit_comm::nccl::Nccl>, String), String>;
    static NCCL: std::sync::OnceLock<Opened> = std::sync::OnceLock::new();
    let open = || {
        let names = &xdit_comm::nccl::NAMES;
        xdit_kernels::device::open_library("XDIT_NCCL_LIB", names, |file| xdit_comm::nccl::Nccl::open(file))
    };
    NCCL.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// Why an interface has no devices, and what helps.
fn explain(api: Api, missing: &Missing) -> (String, String) {
    let cpu = "or use `--device cpu`";
    let (reason, way_out) = match (missing, api) {
        (Missing::NotCompiled, _) => (
            format!("this build has no backend for {}", api.name()),
            format!("build xDiT with `--features {}`, {cpu}", api.name()),
        ),
        (Missing::NoDevice, Api::Cuda) => (
            "no NVIDIA GPU was found".to_owned(),
            format!("install the NVIDIA driver and check that `nvidia-smi` lists the GPU, {cpu}"),
        ),
        (Missing::NoDevice, Api::Vulkan | Api::Wgpu) => (
            "no GPU with a Vulkan driver was found".to_owned(),
            format!(
                "install the GPU's driver and the Vulkan loader (`libvulkan1`), check with `vulkaninfo`, {cpu}"
            ),
        ),
        (Missing::Driver(words), _) => (
            format!("its driver fails: {words}"),
            format!(
                "check the driver with `nvidia-smi`; after an update, the machine has to start anew, {cpu}"
            ),
        ),
        (Missing::Compiler(library), _) => (
            format!("the library `{library}`, which compiles kernels, was not found"),
            format!(
                "install the CUDA toolkit, or add the folder of `{library}.so` to `LD_LIBRARY_PATH`, {cpu}"
            ),
        ),
        (Missing::Headers(folder), _) => (
            format!("CUDA's headers are missing from `{folder}`"),
            format!("install the CUDA toolkit, or set `CUDA_PATH` to its folder, {cpu}"),
        ),
    };
    (reason, way_out)
}

/// A device for people to choose, or why there is none.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name that [`find`] takes.
    pub name: String,
    /// What it is, or why it cannot be used.
    pub state: State,
}

/// What a device is, or why it cannot be used.
#[derive(Clone, Debug)]
pub enum State {
    /// It can compute.
    Usable {
        /// What its driver calls it; the CPU has no such name.
        hardware: Option<String>,
        /// Bytes of its memory, as far as its interface shows them.
        total_bytes: Option<u64>,
        /// Bytes that no program holds.
        free_bytes: Option<u64>,
        /// Whether it is a program that poses as a GPU; `auto` passes it over.
        software: bool,
        /// The type of weights and activations that is its default.
        dtype: DType,
    },
    /// It cannot be used.
    Missing {
        /// Why.
        reason: String,
        /// What helps.
        hint: String,
    },
}

/// Every device, and every interface that has none; best first, the CPU last. Devices are opened.
pub fn all() -> Vec<Listed> {
    let mut listed = Vec::new();
    for api in Api::ALL {
        match list(api) {
            Ok(found) => {
                for (index, found) in found.into_iter().enumerate() {
                    let memory = memory(&found.device);
                    let state = State::Usable {
                        hardware: hardware_name(&found.device),
                        total_bytes: memory.map(|memory| memory.total_bytes),
                        free_bytes: memory.map(|memory| memory.free_bytes),
                        software: found.software,
                        dtype: default_dtype(&found.device),
                    };
                    listed.push(Listed { name: format!("{}:{index}", api.name()), state });
                }
            }
            Err(missing) => {
                let (reason, hint) = explain(api, &missing);
                listed.push(Listed { name: api.name().to_owned(), state: State::Missing { reason, hint } });
            }
        }
    }
    let cpu = Device::flex();
    let state = State::Usable {
        hardware: None,
        total_bytes: total_bytes_of_cpu(),
        free_bytes: free_bytes(&cpu),
        software: false,
        dtype: default_dtype(&cpu),
    };
    listed.push(Listed { name: "cpu".to_owned(), state });
    listed
}

/// The type of weights and activations where none is asked for: bf16 on a GPU that computes in it, f32 elsewhere.
pub fn default_dtype(device: &Device) -> DType {
    match *device != Device::flex() && device.supports_dtype(DType::BF16) {
        true => DType::BF16,
        false => DType::F32,
    }
}

/// Checks that `device`, which was asked for as `name`, computes in `dtype`.
///
/// # Errors
/// If it does not.
pub fn check_dtype(device: &Device, name: &str, dtype: DType) -> Result<()> {
    if *device == Device::flex() || device.supports_dtype(dtype) {
        return Ok(());
    }
    let written = format!("{dtype:?}").to_lowercase();
    Err(Error::usage(format!("device `{name}` does not compute in {written}")).hint("use `--dtype f32`"))
}

/// The memory that programs may still take where the tensors of `device` are, if that is known: on the CPU, what is
/// available, within the limit of the container.
pub fn free_bytes(device: &Device) -> Option<u64> {
    if *device != Device::flex() {
        return memory(device).map(|memory| memory.free_bytes);
    }
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // What a container has read of files is freed when it needs the memory.
    let of_container = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let available = Some(system.available_memory()).filter(|&bytes| bytes > 0);
    [available, of_container].into_iter().flatten().min()
}

fn total_bytes_of_cpu() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let of_container = system.cgroup_limits().map(|limits| limits.total_memory);
    let total = Some(system.total_memory()).filter(|&bytes| bytes > 0);
    [total, of_container].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        let free = free_bytes(&Device::flex()).expect("the system tells");
        assert!((1 << 24..1 << 50).contains(&free), "{free}");
        assert!(total_bytes_of_cpu().expect("the system tells") >= free / 2);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["abacus", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "auto:1", ""] {
            let error = find(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown device `{name}`\nhint: ")), "{error}");
        }
        let error = find("mps").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no backend for device `mps`\nhint: possible values: "),
            "{error}"
        );
    }

    #[test]
    fn ranks_have_devices_of_their_own_or_share_one() {
        assert_eq!(find_each("cpu", 4).unwrap(), [Device::flex()]);
        let error = find_each("cpu:0,1", 2).unwrap_err().to_string();
        assert!(error.starts_with("unknown device `cpu:0`"), "{error}");
        if let Ok(found) = list(Api::Cuda) {
            let all: Vec<Device> = found.into_iter().map(|found| found.device).collect();
            assert_eq!(find_each("cuda", all.len()).unwrap(), all);
            assert_eq!(find_each("cuda", all.len() + 1).unwrap(), all[..1]);
            let twice = find_each("cuda:0,0", 2).unwrap_err().to_string();
            assert!(twice.starts_with("`cuda:0,0` names device `cuda:0` twice"), "{twice}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(find("cpu").unwrap(), Device::flex());
        assert_eq!(default_dtype(&Device::flex()), DType::F32);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            assert!(check_dtype(&Device::flex(), "cpu", dtype).is_ok());
        }
        let last = all().pop().unwrap();
        assert!(last.name == "cpu" && matches!(last.state, State::Usable { software: false, .. }));
    }

    /// What is listed can be asked for, what is missing is refused for the reason that is listed, and `auto` finds
    /// the first that is no program.
    #[test]
    fn the_list_is_what_can_be_asked_for() {
        let listed = all();
        for Listed { name, state } in &listed {
            match state {
                State::Usable { .. } => assert!(find(name).is_ok(), "{name}"),
                State::Missing { reason, hint } => {
                    let error = find(&format!("{name}:0")).unwrap_err().to_string();
                    let expected = format!("device `{name}:0` cannot be used: {reason}\nhint: {hint}");
                    assert_eq!(error, expected);
                }
            }
        }
        let real = |listed: &&Listed| matches!(listed.state, State::Usable { software: false, .. });
        let best = listed.iter().find(real).expect("the CPU is one");
        assert_eq!(find("auto").unwrap(), find(&best.name).unwrap());
    }

    /// Every reason has a way out, and names what is missing.
    #[test]
    fn reasons_name_what_is_missing() {
        let of = |missing| {
            let (reason, hint) = explain(Api::Cuda, &missing);
            assert!(hint.ends_with("or use `--device cpu`"), "{hint}");
            format!("{reason}. {hint}")
        };
        assert!(of(Missing::NotCompiled).contains("`--features cuda`"));
        assert!(of(Missing::NoDevice).contains("nvidia-smi"));
        assert!(of(Missing::Driver("unknown error".into())).contains("unknown error"));
        assert!(of(Missing::Compiler("libnvrtc")).contains("libnvrtc.so"));
        assert!(of(Missing::Headers("/opt/cuda/include".into())).contains("`/opt/cuda/include`"));
        for api in [Api::Vulkan, Api::Wgpu] {
            assert!(explain(api, &Missing::NoDevice).1.contains("libvulkan1"));
        }
    }
}
