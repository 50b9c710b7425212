//! Files that change while a model is loaded, and shapes without elements.

use std::fs::OpenOptions;
use std::path::Path;

use safetensors::tensor::TensorView;

use super::*;
use crate::link::{HostLink, catch};
use crate::placement::TensorShare;

/// A checkpoint of f16 zeros.
fn zeros(dir: &Path, shapes: &[(&str, Vec<usize>)]) -> Checkpoint {
    let bytes = vec![0; 2 * shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap()];
    let view = |shape: &Vec<usize>| {
        let bytes = &bytes[..2 * shape.iter().product::<usize>()];
        TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()
    };
    let views = shapes.iter().map(|(name, shape)| (*name, view(shape)));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(dir, "model", None).unwrap()
}

#[test]
fn a_file_that_shrinks_fails_the_rank_that_reads_it_later() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let checkpoint =
        zeros(dir.path(), &[("late.weight", vec![3, 4]), ("late.bias", vec![3]), ("table", vec![5, 4])]);
    let weights = Weights::new(checkpoint, &device, DType::F32).with_residency(Residency::Reread);
    let layer = weights.once().linear("late", 4, 3).unwrap();
    let table = weights.table("table", &[5, 4]).unwrap();
    let use_them = || {
        let x = Tensor::<2>::zeros([1, 4], (&device, DType::F32));
        [catch(|| Ok(layer.forward(x).dims())), catch(|| Ok(table.rows([1, 2]).dims()))]
    };
    assert_eq!(use_them().map(Result::unwrap), [[1, 3], [2, 4]]);

    OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap().set_len(8).unwrap();
    for (end, name) in use_them().into_iter().zip(["late.weight", "table"]) {
        let error = end.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot read tensor `{name}`: ")), "{error}");
    }
}

#[test]
fn a_layer_without_inputs_is_cut_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = zeros(dir.path(), &[("out.weight", vec![3, 0]), ("out.bias", vec![3])]);
    let share = |link| Share { blocks: 0..1, tensor: Some(TensorShare { link }) };
    for link in HostLink::ends(2) {
        let weights = Weights::check_only(checkpoint.clone(), DType::F32)
            .of_share(share(link), vec![("out".to_owned(), Placement::Inputs { unit: 1 })]);
        assert!(weights.linear("out", 0, 3).is_ok());
    }
}
