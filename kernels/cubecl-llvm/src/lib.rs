//! Stand-in for the crate `cubecl-llvm` 0.11.3. See `README.md` beside it.
//!
//! `cubecl-cuda` names the types below in its second compiler, the one by LLVM. With cubecl's feature `cuda-cpp` the
//! first one, NVRTC, compiles every kernel, and nothing in here is called. [`PlironCompiler::compile`] is an error.

use cubecl_core::Compiler;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;

/// The instruction set to compile for.
#[derive(Clone, Copy, Debug, Default)]
pub enum LlvmTarget {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Nvptx,
}

/// A compiler that compiles nothing.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// The instruction set asked for.
    pub target: LlvmTarget,
}

/// Options of a compilation.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// The processor's architecture.
    pub arch: Option<()>,
    /// The GPU's architecture.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX to write.
    pub ptx_version: Option<PtxVersion>,
    /// Whether launch parameters are grid constants.
    pub grid_constants: bool,
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// The text of the PTX, ended by a zero.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's name.
    pub entrypoint: String,
    /// The intermediate code.
    pub ir: String,
    /// Bytes of shared memory a launch reserves.
    pub shared_memory_size: usize,
    /// How each buffer is used.
    pub io: Vec<BufferIOAttr>,
}

/// The result of a compilation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// Code for an NVIDIA GPU.
    NvptxCode(NvptxModule),
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM; build with cubecl's feature `cuda-cpp`".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// What is particular to NVIDIA's GPUs.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        /// A version of PTX. There is none without LLVM.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver loads: none is known here.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the LLVM targets share.
pub mod shared {
    /// Features of a device that LLVM's code cannot use.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The kind of GPU.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// An NVIDIA GPU.
            Nvptx,
        }

        /// Leaves the properties as they are. Only the LLVM compiler needs restrictions.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
