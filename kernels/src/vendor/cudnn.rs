//! Attention and convolutions by cuDNN's graph interface.

mod graph;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::DType;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Device;

use super::order;
use crate::cube::empty_pixels;
use graph::{Api, Descriptor, Plan, Slot};

/// Version and place of the library, or why there is none.
pub(super) fn version() -> Result<String, String> {
    let api = graph::api()?;
    let version = api.version();
    let shown = format!("{}.{}.{} ({})", version / 10_000, version / 100 % 100, version % 100, api.place());
    if version < OLDEST {
        return Err(format!("{shown} is older than 9.13.1"));
    }
    Ok(shown)
}

/// The first version with attention as one operation.
const OLDEST: usize = 91_301;
/// The first version that takes the log-sum-exp in another way.
const NEWEST_STATISTICS: usize = 92_100;

/// Scores of one head for fewer than which a new plan, which takes a tenth of a second, does not pay.
const FEW_SCORES: usize = 1 << 16;
/// Products of a convolution, likewise.
const FEW_PRODUCTS: usize = 1 << 24;

/// Type, sizes and elements from one to the next, along each dimension.
type Layout = (DType, [usize; 4], [usize; 4]);

/// What a plan depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    device: usize,
    operation: Operation,
    tensors: Vec<Layout>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Attention,
    Convolution { stride: usize, padding: [usize; 4] },
}

fn layout(tensor: &CubeTensor, order: [usize; 4]) -> Option<Layout> {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    // The library reads 16 bytes at once.
    let aligned = tensor.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    let four = aligned && shape.len() == 4;
    four.then(|| (tensor.dtype, order.map(|dim| shape[dim]), order.map(|dim| strides[dim])))
}

/// The plan for `key`, made on the device's runner when it is asked for first.
fn plan(api: &'static Api, lane: &Arc<order::Lane>, device: &Device, key: Key) -> Option<Plan> {
    static PLANS: OnceLock<Mutex<HashMap<Key, Option<Plan>>>> = OnceLock::new();
    let plans = || PLANS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(plan) = plans().get(&key) {
        return *plan;
    }
    // Making a plan may wait for the device, and that for another device, whose thread takes plans from here meanwhile.
    let (lane, asked) = (lane.clone(), key.clone());
    let made = order::on_runner(device, move || {
        lane.enter().ok()?;
        let handle = api.handle(asked.device)?;
        let operation = match asked.operation {
            Operation::Attention => attention_operation(api, &asked.tensors),
            Operation::Convolution { stride, padding } => {
                let convolution = api.convolution(stride, padding);
                convolution.and_then(|how| convolution_operation(api, &how, &asked.tensors))
            }
        };
        operation.and_then(|operation| api.plan(handle, operation)).ok()
    });
    let made = made.flatten();
    plans().insert(key, made);
    made
}

const IDS: [i64; 5] = [1, 2, 3, 4, 5];
const SCALE: i64 = 100;

/// Queries, keys, values, output and log-sum-exp, each as batch, heads, tokens, features.
fn attention_operation(api: &'static Api, tensors: &[Layout]) -> Result<Descriptor, String> {
    let operation = api.describe(graph::ATTENTION)?;
    for ((id, slot), tensor) in IDS.into_iter().zip(graph::ATTENTION_TENSORS).zip(tensors) {
        operation.refer(slot, &api.tensor(id, tensor, false)?)?;
    }
    let scale = (DType::F32, [1; 4], [1; 4]);
    operation.refer(graph::ATTENTION_SCALE, &api.tensor(SCALE, &scale, true)?)?;
    operation.finish()
}

/// Image, weight and output.
fn convolution_operation(
    api: &'static Api,
    how: &Descriptor,
    tensors: &[Layout],
) -> Result<Descriptor, String> {
    let operation = api.describe(graph::CONVOLUTION_FORWARD)?;
    for ((id, slot), tensor) in IDS.into_iter().zip(graph::CONVOLUTION_TENSORS).zip(tensors) {
        operation.refer(slot, &api.tensor(id, tensor, false)?)?;
    }
    operation.refer(graph::CONVOLUTION_HOW, how)?;
    operation.set_f32(graph::CONVOLUTION_ALPHA, 1.0)?;
    operation.set_f32(graph::CONVOLUTION_BETA, 0.0)?;
    operation.finish()
}

fn half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The library and the device's lane, if there are both.
///
/// # Panics
/// If an earlier call failed.
fn ready(device: &Device) -> Option<(&'static Api, Arc<order::Lane>, usize)> {
    let Device::Cuda(cuda) = device else { return None };
    let api = graph::api().ok().filter(|api| api.version() >= OLDEST)?;
    let lane = order::lane(cuda.index).ok()?;
    if let Some(failure) = lane.failure() {
        panic!("a call of one of NVIDIA's libraries failed: {failure}");
    }
    Some((api, lane, cuda.index))
}

/// `softmax(q kᵀ · scale) v` and the log-sum-exp, as [`attention_lse`](crate::attention_lse) without a bias, for large
/// tensors of 16 bits. `None`, if the library is missing, or does not compute it or not faster.
///
/// # Panics
/// If an earlier call failed.
pub(crate) fn attention_lse(
    q: &CubeTensor,
    k: &CubeTensor,
    v: &CubeTensor,
    scale: f32,
) -> Option<(CubeTensor, CubeTensor)> {
    let &[b, nq, h, d] = q.meta.shape().as_slice() else { return None };
    let nk = k.meta.shape()[1];
    let fits = half(q.dtype) && q.dtype == k.dtype && q.dtype == v.dtype && d % 8 == 0 && d <= 128;
    if !fits || b == 0 || h == 0 || nq * nk < FEW_SCORES {
        return None;
    }
    let (api, lane, index) = ready(&q.device)?;
    if api.version() >= NEWEST_STATISTICS {
        return None;
    }
    let empty = |shape: Vec<usize>, dtype| {
        empty_device_contiguous_dtype(q.client.clone(), q.device.clone(), shape.into(), dtype)
    };
    let out = empty(vec![b, nq, h, d], q.dtype);
    let lse = empty(vec![b, h, nq, 1], DType::F32);
    let by_head = |tensor| layout(tensor, [0, 2, 1, 3]).filter(|(_, _, strides)| strides[3] == 1);
    let tensors = vec![by_head(q)?, by_head(k)?, by_head(v)?, by_head(&out)?, layout(&lse, [0, 1, 2, 3])?];
    let key = Key { device: index, operation: Operation::Attention, tensors };
    let plan = plan(api, &lane, &q.device, key)?;
    let scratch = (plan.workspace_bytes > 0).then(|| q.client.empty(plan.workspace_bytes));
    order::submit(lane, &[q, k, v, &lse, &out], scratch, move |addresses, stream| {
        // The output is the last one of `submit`, and the fourth of the plan.
        let of_plan = [addresses[0], addresses[1], addresses[2], addresses[4], addresses[3]];
        let mut slots: Vec<Slot> = IDS.into_iter().zip(of_plan).collect();
        slots.push((SCALE, (&raw const scale) as u64));
        api.run(&plan, &slots, addresses.get(5).copied().unwrap_or(0), stream)
    });
    let lse = burn_cubecl::ops::reshape(lse, [b, h, nq].into());
    Some((out, permute(lse, &[0, 2, 1])))
}

/// The plan of a convolution of images whose channels lie together.
pub(crate) struct Convolution {
    plan: Plan,
    lane: Arc<order::Lane>,
    api: &'static Api,
    shape: [usize; 4],
}

impl Convolution {
    /// For an image of shape `x` `[b, c_in, y, x]` and a weight of shape `weight`, both of 16 bits on the device of
    /// `like`. The zeros of `padding` are at the top, bottom, left and right. `None`, as in [`attention_lse`].
    ///
    /// # Panics
    /// If an earlier call failed.
    pub(crate) fn new(
        like: &CubeTensor,
        x: [usize; 4],
        weight: [usize; 4],
        stride: usize,
        padding: [usize; 4],
    ) -> Option<Self> {
        let ([b, c_in, rows, cols], [c_out, _, ky, kx], [top, bottom, left, right]) = (x, weight, padding);
        let steps = |size: usize, kernel: usize| size.checked_sub(kernel).map_or(0, |rest| rest / stride + 1);
        let shape = [b, c_out, steps(rows + top + bottom, ky), steps(cols + left + right, kx)];
        if !half(like.dtype) || shape.iter().product::<usize>() * c_in * ky * kx < FEW_PRODUCTS {
            return None;
        }
        let (api, lane, index) = ready(&like.device)?;
        let pixels =
            |shape @ [_, c, rows, cols]: [usize; 4]| (like.dtype, shape, [rows * cols * c, 1, cols * c, c]);
        let tensors = vec![pixels(x), pixels(weight), pixels(shape)];
        let key = Key { device: index, operation: Operation::Convolution { stride, padding }, tensors };
        let plan = plan(api, &lane, &like.device, key)?;
        Some(Self { plan, lane, api, shape })
    }

    /// Carries it out. The channels of `x` and `weight` lie together at multiples of 16 bytes, and so do the result's.
    pub(crate) fn run(self, x: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
        let Self { plan, lane, api, shape } = self;
        let y = empty_pixels(x, shape, x.dtype);
        let scratch = (plan.workspace_bytes > 0).then(|| x.client.empty(plan.workspace_bytes));
        order::submit(lane, &[x, weight, &y], scratch, move |addresses, stream| {
            let slots: Vec<Slot> = IDS.into_iter().zip(addresses[..3].iter().copied()).collect();
            api.run(&plan, &slots, addresses.get(3).copied().unwrap_or(0), stream)
        });
        y
    }
}
