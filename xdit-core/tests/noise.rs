//! Compares `Generator` with `torch.randn`, bit for bit. The script for the golden file is beside it.

use burn::tensor::Device;
use serde_json::Value;
use xdit_core::noise::{Generator, latents};

fn bits(values: &[f32]) -> String {
    values.iter().map(|value| format!("{:08x}", value.to_bits())).collect()
}

/// A checksum that depends on every bit and on the order, and is quick to compute in NumPy.
fn checksum(values: &[f32]) -> String {
    let sum = (0u64..).zip(values).fold(0u64, |sum, (index, value)| {
        sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(2 * index + 1))
    });
    format!("{sum:016x}")
}

#[test]
fn every_draw_equals_that_of_torch() {
    let streams: Vec<Value> = serde_json::from_str(include_str!("goldens/noise.json")).unwrap();
    assert!(streams.len() > 10);
    for stream in &streams {
        let seed = stream["seed"].as_u64().unwrap();
        let mut generator = Generator::from_seed(seed);
        for (i, draw) in stream["draws"].as_array().unwrap().iter().enumerate() {
            let size = draw["size"].as_u64().unwrap() as usize;
            let values = generator.randn(size);
            assert_eq!(values.len(), size);
            let (found, expected) = match &draw["bits"] {
                Value::String(expected) => (bits(&values), expected.as_str()),
                _ => (checksum(&values), draw["checksum"].as_str().unwrap()),
            };
            assert_eq!(found, expected, "seed {seed}, draw {i} of {size} values");
        }
    }
}

#[test]
fn drawing_no_values_changes_nothing() {
    let mut generator = Generator::from_seed(5);
    assert!(generator.randn(0).is_empty());
    assert_eq!(generator.randn(3), Generator::from_seed(5).randn(3));
}

#[test]
fn only_the_low_word_of_a_seed_matters() {
    assert_eq!(Generator::from_seed(1 << 32 | 9).randn(17), Generator::from_seed(9).randn(17));
}

#[test]
fn latents_of_an_image_do_not_depend_on_the_others() {
    let device = Device::default();
    let together = latents(11, [3, 4, 5, 7], &device);
    for image in 0..3 {
        let alone = latents(11 + image as u64, [1, 4, 5, 7], &device);
        let part = together.clone().narrow(0, image, 1);
        assert_eq!(part.into_data(), alone.into_data());
    }
}
