//! Weights of the variant `fp16`, beside those of 32 bits. Recorded runs of other families have them, too: `hunyuan-12-*`,
//! `sdxl-turbo-*` and some of PixArt and Stable Diffusion 3.

use std::fs;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_tests::{changed, device};

/// A tensor in 16 bits.
fn halved(tensor: &TensorView<'_>) -> Vec<u8> {
    assert_eq!(tensor.dtype(), Dtype::F32);
    let values = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    let values = TensorData::from(&values.collect::<Vec<f32>>()[..]);
    values.convert_dtype(DType::F16).as_bytes().to_vec()
}

/// For each weight file of a checkpoint, writes one in 16 bits, with `ending` in its name.
fn write_halved(checkpoint: &Path, ending: &str) -> usize {
    let mut written = 0;
    for folder in fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path()) {
        for stem in ["model", "diffusion_pytorch_model"] {
            let Ok(bytes) = fs::read(folder.join(format!("{stem}.safetensors"))) else { continue };
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let halves: Vec<_> = tensors.iter().map(|(name, tensor)| (name, halved(&tensor))).collect();
            let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
            let views = halves
                .iter()
                .map(|(name, bytes)| (*name, TensorView::new(Dtype::F16, shape(name), bytes).unwrap()));
            let halves = safetensors::serialize(views, None).unwrap();
            fs::write(folder.join(format!("{stem}{ending}.safetensors")), halves).unwrap();
            written += 1;
        }
    }
    written
}

/// The variant is used on request only, and gives the result that the same weights give as plain files.
#[test]
fn fp16_beside_f32() {
    for (checkpoint, prompt, components) in [("latte", "a cat", 3), ("dit-256", "207", 2)] {
        let copy = changed(checkpoint, "model_index.json", |_| {});
        let decoded = |variant: Option<&str>| {
            let variant = variant.map(str::to_owned);
            let options = LoadOptions { variant, ..LoadOptions::new(device(), DType::F32) };
            let mut pipeline = xdit_models::open(copy.path(), &options).unwrap();
            let side = (checkpoint == "latte").then_some(32);
            let request =
                Request { num_inference_steps: Some(2), height: side, width: side, ..Request::new(prompt) };
            let made = pipeline.generate(&request, &mut ()).unwrap();
            made.pictures.into_iter().flat_map(|picture| picture.rgb).collect::<Vec<u8>>()
        };
        let exact = decoded(None);
        assert_eq!(write_halved(copy.path(), ".fp16"), components);
        assert_eq!(decoded(None), exact, "{checkpoint}");
        let half = decoded(Some("fp16"));
        assert_ne!(half, exact, "{checkpoint}");
        write_halved(copy.path(), "");
        assert_eq!(decoded(None), half, "{checkpoint}");
    }
}
