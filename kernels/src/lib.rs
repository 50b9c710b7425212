//! Operations of diffusion transformers and autoencoders that Burn lacks or has slowly.
//!
//! Each operation has one file with three layers:
//!
//! - a function over [`Tensor`](burn::tensor::Tensor), which models call and which states the contract;
//! - an extension trait generic over Burn's [`Backend`](burn::backend::Backend), such as [`AttentionOps`]. Its default
//!   body is the reference, written in operations that every backend has, so the operation runs on each of them;
//! - the backends' own versions, such as `impl AttentionOps for Flex` in `attention/cpu.rs`, and `for CubeBackend` in
//!   `attention/cube.rs`.
//!
//! `tests/operations` holds every version in every type to sums in f64. `XDIT_TEST_DEVICE` names the device.
//!
//! # The contract on types
//!
//! Inputs are f32, or f16 or bf16. Statistics (the softmax and its log-sum-exp, the moments of norms, the shares of a
//! merge) are f32 whatever the inputs are, and so are [`Moments`], [`Affine`] and log-sum-exps. Results have the type
//! of the first tensor. Sizes may be zero; neither they nor masks of `-inf` make a NaN.
//!
//! # Adding an operation
//!
//! 1. Write `name.rs`: the function over `Tensor`, whose docs state shapes and contract; the trait with
//!    `#[backend_extension(…)]`, which lists the backends; and the reference. References are written with
//!    `plain::Plain`: `Plain::wide` makes f32 of 16-bit inputs, `Plain::round_to` rounds the result once. Tensors that
//!    may be absent are [`Optional`].
//! 2. Write `impl NameOps for Flex` in `name/cpu.rs`. An empty one runs the reference.
//! 3. Add the reference to [`mod@reference`] and cases to `tests/operations`: ordinary and odd shapes, each layout, and
//!    every edge that the docs promise.
//!
//! # Adding a backend's version
//!
//! For a backend that the traits already list, override the method in its `impl`. In those for Flex, the `match` on
//! the type of the first tensor is the place for a faster 16-bit version: an arm before the one that widens to f32 by
//! `cpu::wide` and rounds by `cpu::round_to`.
//!
//! For a new backend, add its selector to `#[backend_extension(…)]` (`Cube: cfg(feature = "…")` for all of CubeCL's
//! runtimes) and one file an operation, `name/cube.rs`, with `impl NameOps for CubeBackend`. Then give the device a
//! name in `tests/operations/setting.rs` and run the matrix on it.
//!
//! # Shapes
//!
//! Letters in shapes: `b` batch, `n` tokens (`nq` queries, `nk` keys), `h` heads, `d` features of a head, `c`
//! channels, `y` × `x` rows and columns of an image, `g` groups.

mod activation;
mod attention;
mod conv;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod device;
mod group_norm;
mod linear;
mod norm;
mod optional;
mod plain;
pub mod reference;
mod residual;
mod rotary;
#[cfg(test)]
mod testing;
#[cfg(feature = "cuda")]
mod vendor;

pub use activation::{Activation, ActivationOps, activate, gated_activate};
pub use attention::{AttentionOps, attention, attention_lse, merge_lse};
pub use conv::{Conv2d, ConvOps, Geometry, conv2d};
pub use cpu::shared_memory;
pub use group_norm::{Affine, GroupNormOps, Moments, group_norm_affine, group_norm_moments, norm_act};
pub use linear::{LinearOps, linear};
pub use norm::{NormOps, layer_norm, layer_norm_modulate, rms_norm};
pub use optional::Optional;
pub use residual::{ResidualOps, gated_residual};
pub use rotary::{RotaryOps, rotary};
