//! Operations of diffusion transformers and autoencoders that are missing or slow in Burn.
//!
//! Each operation has one file with three layers:
//!
//! - a function over [`Tensor`](burn::tensor::Tensor), which models call and whose docs define the contract;
//! - an extension trait generic over Burn's [`Backend`](burn::backend::Backend), such as [`AttentionOps`]. Its default
//!   body is the reference, which uses only operations that every backend has, so it runs on all of them;
//! - the backends' own versions, such as `impl AttentionOps for Flex` in `attention/cpu.rs`, and `for CubeBackend` in
//!   `attention/cube.rs`.
//!
//! `tests/operations` compares every version in every type with sums in f64. `XDIT_TEST_DEVICE` selects the device.
//!
//! # The contract on types
//!
//! Inputs are f32, f16 or bf16. Statistics (the softmax and its log-sum-exp, the moments of norms, the weights of a
//! merge) are f32 for all input types, and so are [`Moments`], [`Affine`] and log-sum-exps. Results have the type of
//! the first tensor. Sizes may be zero; neither zero sizes nor masks of `-inf` produce a NaN.
//!
//! # Adding an operation
//!
//! 1. Write `name.rs`: the function over `Tensor`, whose docs state the shapes and the contract; the trait with
//!    `#[backend_extension(…)]`, which lists the backends; and the reference. References are written with
//!    `plain::Plain`: `Plain::wide` converts 16-bit inputs to f32, and `Plain::round_to` rounds the result once.
//!    Optional tensors are [`Optional`].
//! 2. Write `impl NameOps for Flex` in `name/cpu.rs`. An empty one runs the reference.
//! 3. Add the reference to [`mod@reference`] and cases to `tests/operations`: ordinary and odd shapes, every layout,
//!    and every edge case that the docs define.
//!
//! # Adding a backend's version
//!
//! For a backend that the traits already list, override the method in its `impl`. In the `impl` for Flex, a `match`
//! selects by the type of the first tensor. A faster 16-bit version goes there, as an arm before the one that widens
//! to f32 with `cpu::wide` and rounds with `cpu::round_to`.
//!
//! For a new backend, add its selector to `#[backend_extension(…)]` (`Cube: cfg(feature = "…")` for all of CubeCL's
//! runtimes) and one file for each operation, `name/cube.rs`, with `impl NameOps for CubeBackend`. Then add the device
//! to `tests/operations/setting.rs` under a name, and run the matrix on it.
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
mod join;
mod linear;
mod norm;
mod optional;
mod plain;
pub mod profile;
pub mod reference;
mod residual;
mod rotary;
#[cfg(test)]
mod testing;
#[cfg(feature = "cuda")]
mod vendor;

#[cfg(feature = "cuda")]
pub use vendor::side::{Done, Side, Watched};

pub use activation::{Activation, ActivationOps, activate, gated_activate};
pub use attention::{AttentionOps, attention, attention_lse, merge_lse};
pub use conv::{Conv2d, ConvOps, Geometry, conv2d};
pub use cpu::shared_memory;
pub use group_norm::{Affine, GroupNormOps, Moments, group_norm_affine, group_norm_moments, norm_act};
pub use join::{
    JoinOps, contiguous, join, join_channels, join_grid, join_rows, merge_heads, narrow, split_heads,
    write_tokens,
};
pub use linear::{LinearOps, linear, linear_activate, linear_add, linear_of_two, linear_pair};
pub use norm::{NormOps, layer_norm, layer_norm_modulate, rms_norm};
pub use optional::Optional;
pub use residual::{ResidualOps, gated_residual};
pub use rotary::{RotaryOps, layer_norm_rotary, rms_norm_pair, rms_norm_rotary, rotary};
