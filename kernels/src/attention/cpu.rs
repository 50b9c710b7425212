//! Attention on the CPU, without scores in memory, copies of whole tensors, or a required order of heads.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element, f16};
use burn_flex::{Flex, FlexTensor};
use bytemuck::Pod;

use super::half;
use super::merge::merge_lse;
use super::tile::{Attend, Head, HeadBias, HeadOut, QUERIES, scratch};
use super::{AttentionOps, reference_attention_lse, reference_merge_lse, sizes};
use crate::cpu::{
    dims,
    lanes::Level,
    round_to, tensor, wide,
    workers::{self, PerTask},
};
use crate::optional::Optional;

impl AttentionOps for Flex {
    fn attention_lse(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        bias: Optional<Self>,
        scale: f32,
    ) -> (FlexTensor, FlexTensor) {
        match q.dtype() {
            DType::BF16 if alike([&q, &k, &v]) => half::attend_bf16(q, [k, v], bias.into_option(), scale),
            DType::F16 if alike([&q, &k, &v]) => {
                half::attend_widened::<f16>(Level::detect(), q, [k, v], bias.into_option(), scale)
            }
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                let bias = bias.into_option().map(wide);
                let (out, lse) = attention_lse(Level::detect(), wide(q), wide(k), wide(v), bias, scale);
                (round_to(out, dtype), lse)
            }
            _ => reference_attention_lse::<Self>(q, k, v, bias, scale),
        }
    }

    fn merge_lse(
        out_a: FlexTensor,
        lse_a: FlexTensor,
        out_b: FlexTensor,
        lse_b: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        match out_a.dtype() {
            dtype @ (DType::F32 | DType::F16 | DType::BF16) => {
                let (a, b) = ((wide(out_a), wide(lse_a)), (wide(out_b), wide(lse_b)));
                let (out, lse) = merge_lse(Level::detect(), a, b);
                (round_to(out, dtype), lse)
            }
            _ => reference_merge_lse::<Self>(out_a, lse_a, out_b, lse_b),
        }
    }
}

/// Whether all tensors have the same type and at least one feature a head.
fn alike([q, k, v]: [&FlexTensor; 3]) -> bool {
    k.dtype() == q.dtype() && v.dtype() == q.dtype() && dims::<4>(q)[3] > 0
}

/// [`attention_lse`](super::attention_lse) at `level`.
pub(super) fn attention_lse(
    level: Level,
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<FlexTensor>,
    scale: f32,
) -> (FlexTensor, FlexTensor) {
    let [b, nq, nk, h, d] = sizes(&q.shape(), &k.shape(), &v.shape());
    let (q, k, v) = (Heads::new(q), Heads::new(k), Heads::new(v));
    let bias = bias.map(|bias| Bias::new(bias, [b, h, nq, nk]));
    let (mut out, mut lse) =
        (Vec::<f32>::with_capacity(b * nq * h * d), Vec::<f32>::with_capacity(b * nq * h));
    let results = (PerTask(out.as_mut_ptr()), PerTask(lse.as_mut_ptr()));
    // Few queries are divided into smaller tasks, to keep all threads busy. The results do not depend on the division.
    let per_task = (b * h * nq).div_ceil(4 * rayon::current_num_threads()).next_multiple_of(48).min(QUERIES);
    let tasks = nq.div_ceil(per_task.max(1));
    workers::for_each(
        b * h * tasks,
        2 * b * h * nq * nk * d,
        || scratch(d),
        |scratch, index| {
            let (image, head, first) = (index / tasks / h, index / tasks % h, index % tasks * per_task);
            // SAFETY: the first row of this head is within both allocations.
            let (out, lse) = unsafe {
                (results.0.get().add((image * nq * h + head) * d), results.1.get().add(image * nq * h + head))
            };
            level.run(Attend {
                q: q.head(image, head),
                k: k.head(image, head),
                v: v.head(image, head),
                nk,
                bias: bias.as_ref().map(|bias| bias.head(image, head)),
                scale,
                queries: first..(first + per_task).min(nq),
                out: HeadOut { out, stride: h * d, lse, lse_stride: h },
                scratch,
            });
        },
    );
    // SAFETY: the tasks wrote every query of every head.
    unsafe {
        out.set_len(b * nq * h * d);
        lse.set_len(b * nq * h);
    }
    (tensor(out, [b, nq, h, d]), tensor(lse, [b, nq, h]))
}

/// A `[b, n, h, d]` tensor in which the `d` numbers of a head are contiguous.
pub(super) struct Heads(FlexTensor);

impl Heads {
    pub(super) fn new(tensor: FlexTensor) -> Self {
        let (shape, strides) = (tensor.layout().shape(), tensor.layout().strides());
        Self(if strides[3] == 1 || shape[3] == 1 { tensor } else { tensor.to_contiguous() })
    }

    pub(super) fn head<T: Element + Pod>(&self, image: usize, head: usize) -> Head<'_, T> {
        let layout = self.0.layout();
        let [of_image, stride, of_head] = [0, 1, 2].map(|dim: usize| layout.strides()[dim]);
        let start = layout.start_offset() as isize + image as isize * of_image + head as isize * of_head;
        Head { data: self.0.storage(), start: start as usize, stride, d: layout.shape()[3] }
    }
}

/// A bias that is broadcast along its dimensions of size 1.
pub(super) struct Bias {
    tensor: FlexTensor,
    strides: [isize; 4],
}

impl Bias {
    pub(super) fn new(tensor: FlexTensor, shape: [usize; 4]) -> Self {
        let dims = dims::<4>(&tensor);
        let fits = dims.iter().zip(shape).all(|(&dim, size)| dim == 1 || dim == size);
        assert!(fits, "a bias of {dims:?} for scores of {shape:?}");
        let strides =
            [0, 1, 2, 3].map(|i: usize| if dims[i] == 1 { 0 } else { tensor.layout().strides()[i] });
        Self { tensor, strides }
    }

    pub(super) fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    pub(super) fn head<T: Element + Pod>(&self, image: usize, head: usize) -> HeadBias<'_, T> {
        let [of_image, of_head, stride_q, stride_k] = self.strides;
        let start = self.tensor.layout().start_offset() as isize
            + image as isize * of_image
            + head as isize * of_head;
        HeadBias { data: self.tensor.storage(), start: start as usize, stride_q, stride_k }
    }
}
