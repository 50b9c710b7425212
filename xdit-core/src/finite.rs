//! The check for values that are not finite, which end a run with an error instead of a black picture.

use burn::tensor::{DType, Tensor};

use crate::error::{Error, Result};

/// Checks that all values of `x` are finite. `what` names them in the error, as in `the latents after step 3 of 20`;
/// `dtype` is the type in which they were computed.
///
/// # Errors
/// If one is infinite or not a number.
pub fn check<const D: usize>(x: &Tensor<D>, dtype: DType, what: impl FnOnce() -> String) -> Result<()> {
    let all = x.clone().is_finite().all().into_data();
    if all.iter::<bool>().all(|finite| finite) {
        return Ok(());
    }
    let hint = match dtype {
        DType::F16 => "f16 ends at 65504: compute with `--dtype bf16` or `--dtype f32`",
        _ => {
            "the checkpoint may be damaged: compare its files with the original, or try a smaller guidance scale"
        }
    };
    Err(Error::failure(format!("{} are not finite", what())).hint(hint))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn one_value_is_enough() {
        let check = |values: [f32; 3], dtype| {
            let x =
                Tensor::<1>::from_data(TensorData::from(values), (&Device::flex(), DType::F32)).cast(dtype);
            super::check(&x, dtype, || "the values".to_owned())
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            assert!(check([1.0, -2.0, 0.0], dtype).is_ok());
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = check([1.0, bad, 0.0], dtype).unwrap_err().to_string();
                assert!(error.starts_with("the values are not finite\nhint: "), "{error}");
            }
        }
        // Finite in f32 and bf16, but not in f16.
        assert!(check([1e30, 0.0, 0.0], DType::BF16).is_ok());
        assert!(check([1e30, 0.0, 0.0], DType::F16).unwrap_err().to_string().contains("--dtype bf16"));
    }
}
