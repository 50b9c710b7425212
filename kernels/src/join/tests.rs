use burn::tensor::{DType, Device, Tensor, TensorData};

use super::join;

fn numbers(count: usize, first: f32) -> Vec<f32> {
    (0..count).map(|at| first + at as f32).collect()
}

/// On the device of `XDIT_TEST_DEVICE`, `kernels/tests/operations` runs the same.
#[test]
fn tokens_follow_each_other() {
    let device = Device::flex();
    let of = |values: Vec<f32>, tokens: usize| {
        Tensor::<3>::from_data(TensorData::new(values, [2, tokens, 3]), (&device, DType::F32))
    };
    let joined = join(of(numbers(12, 0.0), 2), of(numbers(6, 100.0), 1));
    assert_eq!(joined.dims(), [2, 3, 3]);
    let values = joined.into_data().try_into_vec::<f32>().expect("f32");
    let expected = [0, 1, 2, 3, 4, 5, 100, 101, 102, 6, 7, 8, 9, 10, 11, 103, 104, 105];
    assert_eq!(values, expected.map(|value| value as f32));
}
