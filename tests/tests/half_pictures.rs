//! Compares pictures decoded in half precision with those in f32. The error of the latents would not reveal black
//! pictures.

use burn::tensor::{DType, Tensor, TensorData};
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::noise::Generator;
use xdit_core::weights::Weights;
use xdit_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_tests::{device, goldens};

/// Decodes the latents of a picture of 256 × 256 pixels in `dtype`, to values of 0 to 255.
fn decode(checkpoint: &str, dtype: DType) -> Vec<f32> {
    let dir = goldens().join(checkpoint).join("vae");
    let config = AutoencoderKlConfig::read(Config::read(&dir.join("config.json")).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&dir, "diffusion_pytorch_model", None).unwrap();
    let vae = AutoencoderKl::load(&config, &Weights::new(checkpoint, &device(), dtype)).unwrap();
    let side = 256 / config.scale();
    let shape = [1, config.latent_channels, side, side];
    let noise = Generator::from_seed(7).randn(shape.iter().product());
    let z: Tensor<4> = Tensor::from_data(TensorData::new(noise, shape), (&device(), DType::F32));
    let picture = vae.decode(z.cast(dtype));
    assert_eq!((picture.dims(), picture.dtype()), ([1, 3, 256, 256], dtype));
    let values = picture.cast(DType::F32).into_data().try_into_vec::<f32>().unwrap();
    assert!(values.iter().all(|value| value.is_finite()), "{dtype:?} is not finite");
    values.into_iter().map(|value| (value.clamp(-1.0, 1.0) + 1.0) * 127.5).collect()
}

/// f16 has three binary digits more than the 8 of a picture. bf16 has equally many, so each layer rounds by up to half
/// a value.
#[test]
fn a_decoded_picture_is_the_same_to_the_eye() {
    for checkpoint in ["pixart-alpha-256", "sd3-medium"] {
        let exact = decode(checkpoint, DType::F32);
        for (dtype, tolerance) in [(DType::F16, 2.0), (DType::BF16, 6.0)] {
            let half = decode(checkpoint, dtype);
            let apart = half.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{checkpoint} in {dtype:?}: at most {apart:.2} of 255 from f32");
            assert!(apart <= tolerance, "{checkpoint} in {dtype:?} is {apart} of 255 from f32");
        }
    }
}
