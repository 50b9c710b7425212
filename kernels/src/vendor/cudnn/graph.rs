//! The part of cuDNN's backend interface that describes one operation and runs it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use cudarc::driver::sys::CUstream;

use crate::vendor::library;

type Opaque = *mut c_void;
type Status = i32;

// Numbers of `cudnn_graph.h`: kinds of descriptors,
const CONVOLUTION: i32 = 1;
const ENGINE_CONFIG: i32 = 3;
const HEURISTICS: i32 = 4;
const EXECUTION_PLAN: i32 = 5;
pub(super) const CONVOLUTION_FORWARD: i32 = 10;
const GRAPH: i32 = 15;
const VARIANT_PACK: i32 = 16;
const TENSOR: i32 = 17;
pub(super) const ATTENTION: i32 = 41;
// types of attributes,
const HANDLE: i32 = 0;
const DATA_TYPE: i32 = 1;
const BOOLEAN: i32 = 2;
const INT64: i32 = 3;
const FLOAT: i32 = 4;
const POINTER: i32 = 6;
const CONVOLUTION_MODE: i32 = 7;
const HEURISTICS_MODE: i32 = 8;
const DESCRIPTOR: i32 = 15;
// and attributes.
pub(super) const ATTENTION_TENSORS: [i32; 5] = [2800, 2801, 2802, 2803, 2804];
pub(super) const ATTENTION_SCALE: i32 = 2805;
pub(super) const CONVOLUTION_TENSORS: [i32; 3] = [704, 703, 705];
pub(super) const CONVOLUTION_HOW: i32 = 702;
pub(super) const CONVOLUTION_ALPHA: i32 = 700;
pub(super) const CONVOLUTION_BETA: i32 = 701;

/// A tensor's number in a plan, and its address.
pub(super) type Slot = (i64, u64);

/// The library's functions.
pub(super) struct Api {
    create_handle: unsafe extern "C" fn(*mut Opaque) -> Status,
    set_stream: unsafe extern "C" fn(Opaque, CUstream) -> Status,
    create: unsafe extern "C" fn(i32, *mut Opaque) -> Status,
    destroy: unsafe extern "C" fn(Opaque) -> Status,
    set: unsafe extern "C" fn(Opaque, i32, i32, i64, *const c_void) -> Status,
    get: unsafe extern "C" fn(Opaque, i32, i32, i64, *mut i64, *mut c_void) -> Status,
    finalize: unsafe extern "C" fn(Opaque) -> Status,
    execute: unsafe extern "C" fn(Opaque, Opaque, Opaque) -> Status,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    version: unsafe extern "C" fn() -> usize,
    place: String,
    _library: libloading::Library,
}

/// The library, opened when it is asked for first.
pub(super) fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::open).as_ref().map_err(Clone::clone)
}

/// A description of a tensor, an operation or a plan, destroyed when it is dropped.
pub(super) struct Descriptor {
    api: &'static Api,
    pointer: Opaque,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created by the library and nobody else destroys it.
        let _ = unsafe { (self.api.destroy)(self.pointer) };
    }
}

/// What the library chose for an operation. It lives as long as the process.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    handle: usize,
    plan: usize,
    pub(super) workspace_bytes: usize,
}

impl Api {
    fn open() -> Result<Self, String> {
        let (library, place) = library::open("XDIT_CUDNN_LIB", &["libcudnn.so.9", "libcudnn.so"])?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the name is that of a function in `cudnn_graph.h`, and the field has its type.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            create_handle: function!(b"cudnnCreate"),
            set_stream: function!(b"cudnnSetStream"),
            create: function!(b"cudnnBackendCreateDescriptor"),
            destroy: function!(b"cudnnBackendDestroyDescriptor"),
            set: function!(b"cudnnBackendSetAttribute"),
            get: function!(b"cudnnBackendGetAttribute"),
            finalize: function!(b"cudnnBackendFinalize"),
            execute: function!(b"cudnnBackendExecute"),
            last_error: function!(b"cudnnGetLastErrorString"),
            version: function!(b"cudnnGetVersion"),
            place,
            _library: library,
        })
    }

    /// As `9 * 10000 + 13 * 100 + 1`.
    pub(super) fn version(&self) -> usize {
        // SAFETY: the function takes nothing and returns a number.
        unsafe { (self.version)() }
    }

    /// Where the library was found.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut text: [c_char; 512] = [0; 512];
        // SAFETY: the library writes a text that ends with 0 into so many bytes of ours.
        let text = unsafe {
            (self.last_error)(text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        Err(format!("cuDNN {what}: status {status}, {}", text.to_string_lossy()))
    }

    /// The library's handle for a device of CUDA, whose context is current. Only the device's runner asks.
    pub(super) fn handle(&self, device: usize) -> Option<usize> {
        static HANDLES: OnceLock<Mutex<HashMap<usize, Option<usize>>>> = OnceLock::new();
        let mut handles = HANDLES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let create = || {
            let mut handle = null_mut();
            // SAFETY: the library writes a handle to a variable of ours.
            (unsafe { (self.create_handle)(&raw mut handle) } == 0).then_some(handle as usize)
        };
        *handles.entry(device).or_insert_with(create)
    }

    /// An empty descriptor.
    pub(super) fn describe(&'static self, kind: i32) -> Result<Descriptor, String> {
        let mut pointer = null_mut();
        // SAFETY: the library writes a pointer to a variable of ours.
        self.check("creates a descriptor", unsafe { (self.create)(kind, &raw mut pointer) })?;
        Ok(Descriptor { api: self, pointer })
    }

    /// A tensor of type, sizes and strides `layout`; one number in the host's memory if it is `by_value`.
    pub(super) fn tensor(
        &'static self,
        id: i64,
        (dtype, sizes, strides): &(DType, [usize; 4], [usize; 4]),
        by_value: bool,
    ) -> Result<Descriptor, String> {
        let number: i32 = match dtype {
            DType::F32 => 0,
            DType::F16 => 2,
            DType::BF16 => 9,
            other => return Err(format!("cuDNN does not take {other:?}")),
        };
        let tensor = self.describe(TENSOR)?;
        let signed = |sizes: &[usize; 4]| sizes.map(|size| size as i64);
        tensor.set(900, INT64, &[16_i64])?;
        tensor.set(901, DATA_TYPE, &[number])?;
        tensor.set(902, INT64, &signed(sizes))?;
        tensor.set(903, INT64, &signed(strides))?;
        tensor.set(906, INT64, &[id])?;
        if by_value {
            tensor.set(908, BOOLEAN, &[1_u8])?;
        }
        tensor.finish()
    }

    /// How images are convolved: in f32, with zeros at the top, bottom, left and right.
    pub(super) fn convolution(
        &'static self,
        stride: usize,
        padding: [usize; 4],
    ) -> Result<Descriptor, String> {
        let [top, bottom, left, right] = padding.map(|width| width as i64);
        let convolution = self.describe(CONVOLUTION)?;
        convolution.set(100, DATA_TYPE, &[0_i32])?;
        convolution.set(101, CONVOLUTION_MODE, &[1_i32])?;
        convolution.set(102, INT64, &[1_i64, 1])?;
        convolution.set(103, INT64, &[stride as i64; 2])?;
        convolution.set(104, INT64, &[bottom, right])?;
        convolution.set(105, INT64, &[top, left])?;
        convolution.set(106, INT64, &[2_i64])?;
        convolution.finish()
    }

    /// The first plan that the library proposes for `operation` and can make.
    pub(super) fn plan(&'static self, handle: usize, operation: Descriptor) -> Result<Plan, String> {
        let graph = self.describe(GRAPH)?;
        graph.set(800, HANDLE, &[handle])?;
        graph.refer(801, &operation)?;
        let graph = graph.finish()?;
        let heuristics = self.describe(HEURISTICS)?;
        heuristics.refer(201, &graph)?;
        heuristics.set(200, HEURISTICS_MODE, &[3_i32])?;
        let heuristics = heuristics.finish()?;
        let configs = [(); 4].map(|()| self.describe(ENGINE_CONFIG));
        let configs = configs.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<Opaque> = configs.iter().map(|config| config.pointer).collect();
        let mut count = 0;
        // SAFETY: the library fills at most as many descriptors as it is given, and writes their number to ours.
        let status = unsafe {
            (self.get)(
                heuristics.pointer,
                202,
                DESCRIPTOR,
                pointers.len() as i64,
                &raw mut count,
                pointers.as_mut_ptr().cast(),
            )
        };
        self.check("proposes engines", status)?;
        let mut refusal = "cuDNN proposes no engine".to_owned();
        for config in configs.iter().take(usize::try_from(count).unwrap_or(0)) {
            let make = || {
                let plan = self.describe(EXECUTION_PLAN)?;
                plan.set(400, HANDLE, &[handle])?;
                plan.refer(401, config)?;
                plan.finish()
            };
            match make() {
                Ok(plan) => {
                    let (mut bytes, mut count) = (0_i64, 0_i64);
                    let place = (&raw mut bytes).cast();
                    // SAFETY: the attribute is one number of 64 bits, which is written to ours.
                    let status = unsafe { (self.get)(plan.pointer, 402, INT64, 1, &raw mut count, place) };
                    self.check("sizes a plan", status)?;
                    let workspace_bytes = usize::try_from(bytes).unwrap_or(0);
                    let made = Plan { handle, plan: plan.pointer as usize, workspace_bytes };
                    // The plan stays, and all that it refers to.
                    std::mem::forget((plan, graph, operation, configs));
                    return Ok(made);
                }
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Puts `plan` on `stream`, on the device's runner.
    pub(super) fn run(
        &'static self,
        plan: &Plan,
        slots: &[Slot],
        workspace: u64,
        stream: CUstream,
    ) -> Result<(), String> {
        let handle = plan.handle as Opaque;
        // SAFETY: only the device's runner uses the handle.
        self.check("takes a stream", unsafe { (self.set_stream)(handle, stream) })?;
        let (ids, addresses): (Vec<i64>, Vec<u64>) = slots.iter().copied().unzip();
        let pack = self.describe(VARIANT_PACK)?;
        pack.set(1001, POINTER, &addresses)?;
        pack.set(1000, INT64, &ids)?;
        pack.set(1003, POINTER, &[workspace])?;
        let pack = pack.finish()?;
        // SAFETY: the addresses are those of tensors of the plan's sizes and strides on its device, and they live until
        // the stream has used them. What lies in the host's memory is read during the call.
        self.check("runs a plan", unsafe { (self.execute)(handle, plan.plan as Opaque, pack.pointer) })
    }
}

impl Descriptor {
    /// Sets an attribute to `values`, which have the type that the library knows as `kind`.
    fn set<T>(&self, attribute: i32, kind: i32, values: &[T]) -> Result<(), String> {
        // SAFETY: callers pass values of the type that `kind` stands for; the library copies them.
        let status = unsafe {
            (self.api.set)(self.pointer, attribute, kind, values.len() as i64, values.as_ptr().cast())
        };
        self.api.check(&format!("sets attribute {attribute}"), status)
    }

    /// Sets an attribute to a number.
    pub(super) fn set_f32(&self, attribute: i32, value: f32) -> Result<(), String> {
        self.set(attribute, FLOAT, &[value])
    }

    /// Sets an attribute to another descriptor.
    pub(super) fn refer(&self, attribute: i32, other: &Self) -> Result<(), String> {
        self.set(attribute, DESCRIPTOR, &[other.pointer])
    }

    /// Ends the description.
    pub(super) fn finish(self) -> Result<Self, String> {
        // SAFETY: the descriptor was created by the library.
        let status = unsafe { (self.api.finalize)(self.pointer) };
        self.api.check("finishes a descriptor", status)?;
        Ok(self)
    }
}
