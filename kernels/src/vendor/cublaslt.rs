//! Linear layers by cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Device;
use cudarc::driver::sys::CUstream;

use super::{library, order};

type Opaque = *mut c_void;
type Status = i32;

/// The library's functions, from `cublasLt.h`.
struct Api {
    create: unsafe extern "C" fn(*mut Opaque) -> Status,
    version: unsafe extern "C" fn() -> usize,
    matmul: Matmul,
    description: unsafe extern "C" fn(*mut Opaque, i32, i32) -> Status,
    describe: unsafe extern "C" fn(Opaque, i32, *const c_void, usize) -> Status,
    layout: unsafe extern "C" fn(*mut Opaque, i32, u64, u64, i64) -> Status,
    lay_out: unsafe extern "C" fn(Opaque, i32, *const c_void, usize) -> Status,
    preference: unsafe extern "C" fn(*mut Opaque) -> Status,
    prefer: unsafe extern "C" fn(Opaque, i32, *const c_void, usize) -> Status,
    choose: Choose,
    /// Where it was found.
    place: String,
    _library: libloading::Library,
}

/// Handle, description, alpha, A and its layout, B and its, beta, C and its, D and its, algorithm, workspace, stream.
type Matmul = unsafe extern "C" fn(
    Opaque,
    Opaque,
    *const f32,
    u64,
    Opaque,
    u64,
    Opaque,
    *const f32,
    u64,
    Opaque,
    u64,
    Opaque,
    *const Algorithm,
    u64,
    usize,
    CUstream,
) -> Status;

/// Handle, description, four layouts, preference, wanted results, results, their number.
type Choose = unsafe extern "C" fn(
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    i32,
    *mut Heuristic,
    *mut i32,
) -> Status;

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

// Numbers of `cublasLt.h` and `library_types.h`.
const COMPUTE_32F: i32 = 68;
const R_32F: i32 = 0;
const R_16F: i32 = 2;
const R_16BF: i32 = 14;
const TRANSPOSE_A: i32 = 3;
const EPILOGUE: i32 = 7;
const BIAS_POINTER: i32 = 8;
const BIAS_TYPE: i32 = 26;
const EPILOGUE_NONE: i32 = 1;
const EPILOGUE_BIAS: i32 = 4;
/// With the tanh approximation; beside [`EPILOGUE_BIAS`].
const EPILOGUE_GELU: i32 = 32;
const BATCH_COUNT: i32 = 5;
const BATCH_STRIDE: i32 = 6;
const WORKSPACE_BYTES: i32 = 1;
const REDUCTION_SCHEMES: i32 = 3;
const REDUCTION_IN_COMPUTE_TYPE: u32 = 2;
/// Of A; those of B, C and D follow.
const ALIGNMENT: [i32; 4] = [5, 6, 7, 8];

/// What a plan may take beside the tensors.
const MAX_WORKSPACE_BYTES: usize = 64 << 20;

fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::open).as_ref().map_err(Clone::clone)
}

impl Api {
    fn open() -> Result<Self, String> {
        let names = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
        let (library, place) = library::open("XDIT_CUBLASLT_LIB", &names)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the name is that of a function in `cublasLt.h`, and the field has its type.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            create: function!(b"cublasLtCreate"),
            version: function!(b"cublasLtGetVersion"),
            matmul: function!(b"cublasLtMatmul"),
            description: function!(b"cublasLtMatmulDescCreate"),
            describe: function!(b"cublasLtMatmulDescSetAttribute"),
            layout: function!(b"cublasLtMatrixLayoutCreate"),
            lay_out: function!(b"cublasLtMatrixLayoutSetAttribute"),
            preference: function!(b"cublasLtMatmulPreferenceCreate"),
            prefer: function!(b"cublasLtMatmulPreferenceSetAttribute"),
            choose: function!(b"cublasLtMatmulAlgoGetHeuristic"),
            place,
            _library: library,
        })
    }
}

/// Version and place of the library, or why there is none.
pub(super) fn version() -> Result<String, String> {
    let api = api()?;
    // SAFETY: the function takes nothing and returns a number.
    let version = unsafe { (api.version)() };
    Ok(format!("{}.{}.{} ({})", version / 10_000, version / 100 % 100, version % 100, api.place))
}

/// Sizes and layout of a product: what a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: usize,
    dtype: DType,
    dtype_out: DType,
    /// Rows of the input in a batch, its features, and those of the output.
    sizes: [usize; 3],
    batches: usize,
    /// Elements from one batch to the next, of input, summand and output.
    batch_strides: [usize; 3],
    /// Elements from one row to the next, of input, weight, summand and output.
    strides: [usize; 4],
    /// Bytes to a multiple of which weight, input, summand and output are aligned.
    alignments: [u32; 4],
    bias: bool,
    gelu: bool,
    sum: bool,
}

/// What is done with a product.
#[derive(Default)]
pub(crate) struct Epilogue<'a> {
    /// Added, a number for each output feature.
    pub(crate) bias: Option<&'a CubeTensor>,
    /// Whether GELU with the tanh approximation follows.
    pub(crate) gelu: bool,
    /// To it the product is added before all else.
    pub(crate) sum: Option<Summand<'a>>,
    /// Whether the result is f32.
    pub(crate) wide: bool,
    /// The place of the result, in a tensor that nobody else reads; without it, the result is new.
    pub(crate) place: Option<&'a CubeTensor>,
}

/// A tensor of the result's shape and type.
pub(crate) struct Summand<'a> {
    pub(crate) tensor: &'a CubeTensor,
    /// Whether the result takes its memory. Then it is contiguous, and nobody else reads it.
    pub(crate) consumed: bool,
}

/// What the library chose for a [`Key`]. Handle and descriptions live as long as the process.
#[derive(Clone, Copy)]
struct Plan {
    handle: usize,
    description: usize,
    weight: usize,
    input: usize,
    summand: usize,
    output: usize,
    algorithm: Algorithm,
    workspace_bytes: usize,
}

/// The plan for `key`, made when it is asked for first.
fn plan(api: &Api, lane: &order::Lane, key: Key) -> Option<Plan> {
    static HANDLES: OnceLock<Mutex<HashMap<usize, Option<usize>>>> = OnceLock::new();
    static PLANS: OnceLock<Mutex<HashMap<Key, Option<Plan>>>> = OnceLock::new();
    let plans = || PLANS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = plans().get(&key) {
        return *plan;
    }
    // The library may wait for the device, and that for another device, whose thread takes plans meanwhile.
    let made = || {
        lane.enter().ok()?;
        let mut handles = HANDLES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let create = || {
            let mut handle = null_mut();
            // SAFETY: the library writes a handle to a variable of ours; the device's context is current.
            (unsafe { (api.create)(&raw mut handle) } == 0).then_some(handle as usize)
        };
        let handle = (*handles.entry(key.device).or_insert_with(create))?;
        drop(handles);
        make(api, handle, key)
    };
    let made = made();
    plans().insert(key, made);
    made
}

/// Describes the product to the library, as D = Aᵀ B in columns, which are our rows: A is the weight, B the input.
fn make(api: &Api, handle: usize, key: Key) -> Option<Plan> {
    let number = |dtype| match dtype {
        DType::F32 => Some(R_32F),
        DType::F16 => Some(R_16F),
        DType::BF16 => Some(R_16BF),
        _ => None,
    };
    let (number, number_out) = (number(key.dtype)?, number(key.dtype_out)?);
    let [rows, c_in, c_out] = key.sizes;
    let [input_stride, weight_stride, summand_stride, output_stride] = key.strides;
    let ok = |status: Status| (status == 0).then_some(());
    let layout = |number: i32, columns: usize, rows: usize, stride: usize, batch_stride: usize| {
        let (mut layout, batches, batch_stride) = (null_mut(), key.batches as i32, batch_stride as i64);
        // SAFETY: the library writes a pointer to a variable of ours, and reads attributes of their sizes.
        unsafe {
            ok((api.layout)(&raw mut layout, number, columns as u64, rows as u64, stride as i64))?;
            if batches > 1 {
                ok((api.lay_out)(layout, BATCH_COUNT, (&raw const batches).cast(), size_of::<i32>()))?;
                ok((api.lay_out)(layout, BATCH_STRIDE, (&raw const batch_stride).cast(), size_of::<i64>()))?;
            }
        }
        Some(layout)
    };
    let [of_input, of_summand, of_output] = key.batch_strides;
    let weight = layout(number, c_in, c_out, weight_stride, 0)?;
    let input = layout(number, c_in, rows, input_stride, of_input)?;
    let summand = layout(number_out, c_out, rows, summand_stride, of_summand)?;
    let output = layout(number_out, c_out, rows, output_stride, of_output)?;
    let (mut description, mut preference) = (null_mut(), null_mut());
    // SAFETY: as above.
    unsafe {
        ok((api.description)(&raw mut description, COMPUTE_32F, R_32F))?;
        ok((api.preference)(&raw mut preference))?;
    }
    let describe = |attribute: i32, value: i32| {
        // SAFETY: the attribute is a number of 32 bits, and the description was made above.
        ok(unsafe { (api.describe)(description, attribute, (&raw const value).cast(), size_of::<i32>()) })
    };
    describe(TRANSPOSE_A, 1)?;
    let bias = if key.bias { EPILOGUE_BIAS } else { 0 };
    let gelu = if key.gelu { EPILOGUE_GELU } else { 0 };
    describe(EPILOGUE, (bias | gelu).max(EPILOGUE_NONE))?;
    if key.bias {
        describe(BIAS_TYPE, number)?;
    }
    let prefer = |attribute: i32, value: u32| {
        // SAFETY: the attribute is a number of 32 bits, and the preference was made above.
        ok(unsafe { (api.prefer)(preference, attribute, (&raw const value).cast(), size_of::<u32>()) })
    };
    // Partial sums are added in f32, never in the 16 bits of the output.
    prefer(REDUCTION_SCHEMES, REDUCTION_IN_COMPUTE_TYPE)?;
    for (attribute, alignment) in ALIGNMENT.into_iter().zip(key.alignments) {
        prefer(attribute, alignment)?;
    }
    let (mut found, mut count) = (Heuristic::default(), 0);
    let workspace_bytes = MAX_WORKSPACE_BYTES;
    let bytes = (&raw const workspace_bytes).cast();
    // SAFETY: the attribute is a size. All descriptions were made above, and the library writes one result and the
    // number of results to variables of ours.
    unsafe {
        ok((api.prefer)(preference, WORKSPACE_BYTES, bytes, size_of::<usize>()))?;
        ok((api.choose)(
            handle as Opaque,
            description,
            weight,
            input,
            summand,
            output,
            preference,
            1,
            &raw mut found,
            &raw mut count,
        ))?;
    }
    (count > 0 && found.state == 0).then_some(Plan {
        handle,
        description: description as usize,
        weight: weight as usize,
        input: input as usize,
        summand: summand as usize,
        output: output as usize,
        algorithm: found.algorithm,
        workspace_bytes: found.workspace_bytes,
    })
}

/// `x · weightᵀ` with an epilogue, for tensors of one type on a device of CUDA that are not empty. `None`, if the library
/// is missing or has no way to compute it; then nothing was added to a sum.
///
/// # Panics
/// If an earlier call failed.
pub(crate) fn linear(x: &CubeTensor, weight: &CubeTensor, epilogue: Epilogue) -> Option<CubeTensor> {
    let Epilogue { bias, gelu, sum, wide, place } = epilogue;
    let Device::Cuda(device) = &x.device else { return None };
    let (api, lane) = (api().ok()?, order::lane(device.index).ok()?);
    if let Some(failure) = lane.failure() {
        panic!("a linear layer failed in cuBLASLt: {failure}");
    }
    let dtype_out = if wide { DType::F32 } else { x.dtype };
    let same = |tensor: &CubeTensor| tensor.dtype == x.dtype;
    let fits = |sum: &Summand| sum.tensor.dtype == dtype_out;
    if !same(weight) || !bias.is_none_or(same) || !sum.as_ref().is_none_or(fits) {
        return None;
    }
    let rows_of = |tensor: &CubeTensor| rows(tensor.meta.shape(), tensor.meta.strides());
    let flat = |tensor: &CubeTensor| match rows_of(tensor) {
        Some(_) => tensor.clone(),
        None => into_contiguous(tensor.clone()),
    };
    let in_batches = |tensor: &CubeTensor| match batches(tensor.meta.shape(), tensor.meta.strides()) {
        Some(_) => tensor.clone(),
        None => flat(tensor),
    };
    let (x, weight, bias) = (in_batches(x), flat(weight), bias.map(flat));
    let [c_out, weight_stride] = rows_of(&weight)?;
    let mut shape = x.meta.shape().to_vec();
    let c_in = shape.pop()?;
    shape.push(c_out);
    let (is_sum, mut shared) = (sum.is_some(), None);
    let output = match sum {
        Some(Summand { tensor, consumed: true }) => tensor.clone(),
        sum => {
            shared = sum.map(|summand| in_batches(summand.tensor));
            place.cloned().unwrap_or_else(|| {
                empty_device_contiguous_dtype(
                    x.client.clone(),
                    x.device.clone(),
                    shape.clone().into(),
                    dtype_out,
                )
            })
        }
    };
    let summand = shared.as_ref().unwrap_or(&output);
    for tensor in [summand, &output] {
        assert!(tensor.meta.shape().iter().eq(&shape), "{:?} instead of {shape:?}", tensor.meta.shape());
    }
    // All are in batches if one of them is.
    let parts = [&x, summand, &output];
    let of = |tensor: &CubeTensor| match parts.iter().all(|part| rows_of(part).is_some()) {
        true => rows_of(tensor).map(|[rows, stride]| Batches { count: 1, distance: 0, rows, stride }),
        false => batches(tensor.meta.shape(), tensor.meta.strides()),
    };
    let [of_x, of_summand, of_output] = [of(&x)?, of(summand)?, of(&output)?];
    let key = Key {
        device: device.index,
        dtype: x.dtype,
        dtype_out,
        sizes: [of_x.rows, c_in, c_out],
        batches: of_x.count,
        batch_strides: [of_x, of_summand, of_output].map(|part| part.distance),
        strides: [of_x.stride, weight_stride, of_summand.stride, of_output.stride],
        alignments: [&weight, &x, summand, &output].map(alignment),
        bias: bias.is_some(),
        gelu,
        sum: is_sum,
    };
    let plan = plan(api, &lane, key)?;
    let scratch = (plan.workspace_bytes > 0).then(|| x.client.empty(plan.workspace_bytes));
    // The output comes last of the tensors, and scratch memory behind it.
    let inputs = [&x, &weight].into_iter().chain(&bias).chain(&shared);
    let tensors: Vec<&CubeTensor> = inputs.chain([&output]).collect();
    let (count, with_bias, is_shared) = (tensors.len(), bias.is_some(), shared.is_some());
    order::submit(lane, &tensors, scratch, move |addresses, stream| {
        let (input, weight, output) = (addresses[0], addresses[1], addresses[count - 1]);
        let workspace = addresses.get(count).copied().unwrap_or(0);
        let bias = with_bias.then(|| addresses[2]);
        let summand = if is_shared { addresses[count - 2] } else { output };
        run(api, &plan, [input, weight, summand, output], bias, is_sum, workspace, stream)
    });
    Some(output)
}

fn run(
    api: &Api,
    plan: &Plan,
    [input, weight, summand, output]: [u64; 4],
    bias: Option<u64>,
    is_sum: bool,
    workspace: u64,
    stream: CUstream,
) -> Result<(), String> {
    let (one, of_sum) = (1.0, if is_sum { 1.0 } else { 0.0 });
    let description = plan.description as Opaque;
    // SAFETY: handle, descriptions and algorithm are those of one plan, which lives as long as the process, and only the
    // runner changes the bias in a description of its device. The addresses are those of tensors of the plan's sizes and
    // strides on that device, which live until the stream has used them.
    let status = unsafe {
        let bias = bias.map_or(0, |bias| {
            (api.describe)(description, BIAS_POINTER, (&raw const bias).cast(), size_of::<u64>())
        });
        match bias {
            0 => (api.matmul)(
                plan.handle as Opaque,
                description,
                &raw const one,
                weight,
                plan.weight as Opaque,
                input,
                plan.input as Opaque,
                &raw const of_sum,
                summand,
                plan.summand as Opaque,
                output,
                plan.output as Opaque,
                &raw const plan.algorithm,
                workspace,
                plan.workspace_bytes,
                stream,
            ),
            status => status,
        }
    };
    if status == 0 { Ok(()) } else { Err(format!("status {status}")) }
}

/// The number of rows and the elements from one to the next, if all features of a row lie one after the other, and all
/// rows at equal distances.
fn rows(shape: &[usize], strides: &[usize]) -> Option<[usize; 2]> {
    let (&features, outer) = shape.split_last()?;
    let (&step, outer_strides) = strides.split_last()?;
    if step != 1 && features > 1 {
        return None;
    }
    let (mut rows, mut stride) = (1, features);
    // From the inside out: each dimension goes on where the one inside it ends.
    for (&size, &distance) in outer.iter().zip(outer_strides).rev().filter(|(size, _)| **size != 1) {
        if rows == 1 {
            stride = distance;
        } else if distance != rows * stride {
            return None;
        }
        rows *= size;
    }
    // Rows that overlap, as in an expanded tensor, have no layout.
    (stride >= features).then_some([rows, stride])
}

/// Rows in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batches {
    count: usize,
    /// Elements from one batch to the next.
    distance: usize,
    /// Rows of a batch, and elements from one to the next.
    rows: usize,
    stride: usize,
}

/// The first dimension as batches of rows, if those of each are as in [`rows`].
fn batches(shape: &[usize], strides: &[usize]) -> Option<Batches> {
    if shape.len() < 3 {
        return None;
    }
    let [rows, stride] = rows(&shape[1..], &strides[1..])?;
    Some(Batches { count: shape[0], distance: strides[0], rows, stride })
}

/// Bytes to a multiple of which `tensor` is aligned, as far as the library asks.
fn alignment(tensor: &CubeTensor) -> u32 {
    let offset = tensor.handle.offset_start.unwrap_or(0);
    1 << offset.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_cubecl::CubeBackend;

    use super::*;

    /// The library's documentation does not say which of the two it is.
    #[test]
    #[ignore = "takes an NVIDIA GPU"]
    fn gelu_is_the_approximation_with_tanh() {
        let device = burn::tensor::Device::cuda(0);
        let (rows, c) = (64, 64);
        let x = Tensor::<2>::random([rows, c], Distribution::Uniform(-3.5, -1.5), (&device, DType::F32));
        let x = x.cast(DType::BF16);
        let one = Tensor::<2>::eye(c, &device).cast(DType::BF16);
        let primitive = |x: &Tensor<2>| {
            x.clone().try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("a tensor on the GPU"))
        };
        let y = linear(&primitive(&x), &primitive(&one), Epilogue { gelu: true, ..Epilogue::default() });
        let y = Tensor::<2>::from_primitive::<CubeBackend>(y.expect("cuBLASLt"));
        let numbers = |x: Tensor<2>| x.cast(DType::F32).into_data().try_into_vec::<f32>().expect("f32");
        let far = |f: fn(f64) -> f64| {
            let pairs = numbers(x.clone()).into_iter().zip(numbers(y.clone()));
            pairs.map(|(x, y)| (f(f64::from(x)) / f64::from(y) - 1.0).abs()).fold(0.0, f64::max)
        };
        let tanh = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh());
        // Of the exact function the approximation differs by half at -3.5.
        assert!(far(tanh) < 0.02, "{}", far(tanh));
    }

    #[test]
    fn parts_of_tokens_are_batches_of_rows() {
        // 5 of 9 tokens of 3 images, whose features are 8 of 24.
        let (shape, strides) = ([3, 5, 8], [9 * 24, 24, 1]);
        assert_eq!(rows(&shape, &strides), None);
        let expected = Batches { count: 3, distance: 9 * 24, rows: 5, stride: 24 };
        assert_eq!(batches(&shape, &strides), Some(expected));
        assert_eq!(
            batches(&[3, 5, 8], &[8, 24, 1]),
            Some(Batches { count: 3, distance: 8, rows: 5, stride: 24 })
        );
        assert_eq!(batches(&[3, 5, 8], &[40, 1, 5]), None, "features lie apart");
        assert_eq!(batches(&[5, 8], &[8, 1]), None, "there is one batch");
    }

    #[test]
    fn rows_at_equal_distances_are_used_where_they_lie() {
        for (shape, strides, expected) in [
            (&[5, 7][..], &[7, 1][..], Some([5, 7])),
            // Pitched, a part of wider rows, and a part of more rows.
            (&[5, 7], &[8, 1], Some([5, 8])),
            (&[2, 3, 7], &[24, 8, 1], Some([6, 8])),
            (&[1, 3, 7], &[999, 8, 1], Some([3, 8])),
            (&[2, 1, 7], &[24, 999, 1], Some([2, 24])),
            (&[2, 3, 7], &[80, 8, 1], None),
            // Transposed, expanded, one row, and one feature.
            (&[5, 7], &[1, 5], None),
            (&[5, 7], &[0, 1], None),
            (&[1, 7], &[0, 1], Some([1, 7])),
            (&[7], &[1], Some([1, 7])),
            (&[5, 1], &[1, 1], Some([5, 1])),
            (&[5, 1], &[3, 9], Some([5, 3])),
        ] {
            assert_eq!(rows(shape, strides), expected, "{shape:?} {strides:?}");
        }
    }
}
