//! Compares every operation, in every type and version, on one device with sums in f64.
//!
//! A test is named `operation::type::version`. `reference` is the version in plain Burn operations, and `own` is that
//! of the device's backend (the reference again, if the backend has none). `XDIT_TEST_DEVICE` selects the device.

mod cases;
mod setting;
mod truth;

use burn::tensor::DType;

use setting::{Setting, Version};

/// The tests of each operation in `cases`.
macro_rules! matrix {
    ($($operation:ident),* $(,)?) => {$(
        mod $operation {
            matrix!(@types $operation: f32 = F32, bf16 = BF16, f16 = F16);
        }
    )*};
    (@types $operation:ident: $($name:ident = $dtype:ident),*) => {$(
        mod $name {
            use crate::{DType, Setting, Version, cases};

            #[test]
            fn reference() {
                Setting::new(stringify!($operation), DType::$dtype, Version::Reference).run(cases::$operation);
            }

            #[test]
            fn own() {
                Setting::new(stringify!($operation), DType::$dtype, Version::Own).run(cases::$operation);
            }
        }
    )*};
}

matrix! {
    attention,
    merge,
    linear,
    linear_activate,
    linear_add,
    linear_of_two,
    linear_pair,
    join,
    join_channels,
    join_grid,
    split_heads,
    write_tokens,
    join_rows,
    layer_norm,
    layer_norm_modulate,
    rms_norm,
    activate,
    gated_activate,
    gated_residual,
    rotary,
    norm_rotary,
    rms_norm_pair,
    conv2d,
    group_norm_moments,
    group_norm,
    norm_act,
}
