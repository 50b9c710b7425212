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
mod residual;
mod rotary;
#[cfg(test)]
mod testing;

pub use activation::{Activation, activate, gated_activate};
pub use attention::{attention, attention_lse, merge_lse};
pub use conv::{Conv2d, conv2d};
pub use group_norm::{Affine, Moments, group_norm_affine, group_norm_moments, norm_act};
pub use linear::linear;
pub use norm::{layer_norm, layer_norm_modulate, rms_norm};
pub use residual::gated_residual;
pub use rotary::rotary;

/// Every operation in plain Burn operations: what the fast versions are compared with, and what runs on a
/// backend that has none.
pub mod reference {
    pub use crate::activation::{reference_activate as activate, reference_gated_activate as gated_activate};
    pub use crate::attention::{reference_attention_lse as attention_lse, reference_merge_lse as merge_lse};
    pub use crate::conv::reference_conv2d as conv2d;
    pub use crate::group_norm::{
        reference_group_norm_moments as group_norm_moments, reference_norm_act as norm_act,
    };
    pub use crate::linear::reference_linear as linear;
    pub use crate::norm::{
        reference_layer_norm as layer_norm, reference_layer_norm_modulate as layer_norm_modulate,
        reference_rms_norm as rms_norm,
    };
    pub use crate::residual::reference_gated_residual as gated_residual;
    pub use crate::rotary::reference_rotary as rotary;
}
