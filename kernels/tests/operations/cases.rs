//! The cases of each operation: ordinary and odd shapes in every layout, and the edge cases of the contract.

use xdit_kernels::Activation;

mod images;
mod linear;
mod tokens;

pub use images::{conv2d, group_norm, group_norm_moments, join_channels, join_rows, norm_act};
pub use linear::{linear, linear_activate, linear_add, linear_of_two, linear_pair};
pub use tokens::{
    activate, attention, gated_activate, gated_residual, join, join_grid, layer_norm, layer_norm_modulate,
    merge, norm_rotary, rms_norm, rms_norm_pair, rotary, split_heads, write_tokens,
};

const ACTIVATIONS: [Activation; 4] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu];
