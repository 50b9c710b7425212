//! The operations of diffusion transformers and autoencoders that Burn does not have, or has slowly.
//!
//! One file an operation. Each has a public function over [`Tensor`](burn::tensor::Tensor) that any backend can
//! run, a `reference` in plain Burn operations, and faster versions that are chosen at run time by where the
//! tensor lives and what the processor can do. The tests hold every fast version to its reference.
//!
//! Letters in shapes: `b` batch, `n` tokens (`nq` queries, `nk` keys), `h` heads, `d` features of a head, `c`
//! channels, `y` × `x` rows and columns of an image, `g` groups.

mod activation;
mod attention;
mod conv;
mod cpu;
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

pub use activation::{Activation, ActivationOps, activate, gated_activate};
pub use attention::{AttentionOps, attention, attention_lse, merge_lse};
pub use conv::{Conv2d, ConvOps, Geometry, conv2d};
pub use group_norm::{Affine, GroupNormOps, Moments, group_norm_affine, group_norm_moments, norm_act};
pub use linear::{LinearOps, linear};
pub use norm::{NormOps, layer_norm, layer_norm_modulate, rms_norm};
pub use optional::Optional;
pub use residual::{ResidualOps, gated_residual};
pub use rotary::{RotaryOps, rotary};
