//! Broadcasts conditions from the first rank, which encoded the prompts, to all other ranks.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::link::{Link, Place};
use crate::transformer::{IntoParts, Part, Parts};

/// The supported tensor types; a header has their index.
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
/// A number is sent as this many parts of 16 bits, each of which is exact in f32.
const DIGITS: usize = 4;

/// Returns the `values` of the first rank of `world` on every rank, on its `device`. Other ranks pass `None`.
///
/// # Panics
/// If the first rank passes `None`.
pub(crate) fn broadcast<C: IntoParts + Clone>(
    world: &Arc<dyn Link>,
    values: Option<&[C]>,
    device: &Device,
) -> Vec<C> {
    let words = |count: usize| Place { device: device.clone(), dtype: DType::F32 }.slot([count * DIGITS]);
    if world.rank() == 0 {
        let values = values.expect("the first rank has the conditions");
        let values: Vec<Parts> = values.iter().cloned().map(C::into_parts).collect();
        let header = header(&values);
        send(world, encode(&[header.len() as u64], device));
        send(world, encode(&header, device));
        values.iter().flat_map(|parts| &parts.tensors).for_each(|part| send(world, part.x.clone()));
        return values.into_iter().map(C::from_parts).collect();
    }
    let receive = |slot| world.exchange(Vec::new(), vec![(0, slot)]).wait_one();
    let [len] = <[u64; 1]>::try_from(decode(receive(words(1)))).expect("one number was sent");
    let mut header = decode(receive(words(len as usize))).into_iter();
    let mut next = || header.next().expect("a header is as long as announced");
    let mut values = Vec::new();
    for _ in 0..next() {
        let numbers = (0..next()).map(|_| f64::from_bits(next())).collect();
        let mut tensors = Vec::new();
        for _ in 0..next() {
            let place = Place { dtype: DTYPES[next() as usize], device: device.clone() };
            let shape: Vec<usize> = (0..next()).map(|_| next() as usize).collect();
            tensors.push(Part { x: receive(place.slot([shape.iter().product()])), shape });
        }
        values.push(C::from_parts(Parts { tensors, numbers }));
    }
    values
}

/// Encodes the number of values, and for each value its numbers and the types and shapes of its tensors.
fn header(values: &[Parts]) -> Vec<u64> {
    let mut words = vec![values.len() as u64];
    for Parts { tensors, numbers } in values {
        words.push(numbers.len() as u64);
        words.extend(numbers.iter().map(|number| number.to_bits()));
        words.push(tensors.len() as u64);
        for Part { x, shape } in tensors {
            let dtype = DTYPES.iter().position(|&dtype| dtype == x.dtype());
            words.push(dtype.expect("conditions are floating-point numbers") as u64);
            words.push(shape.len() as u64);
            words.extend(shape.iter().map(|&length| length as u64));
        }
    }
    words
}

/// Encodes numbers as a tensor, since links transfer only tensors.
fn encode(words: &[u64], device: &Device) -> Tensor<1> {
    let digits = words.iter().flat_map(|word| (0..DIGITS).map(move |digit| (word >> (16 * digit)) as u16));
    let digits: Vec<f32> = digits.map(f32::from).collect();
    let count = digits.len();
    Tensor::from_data(TensorData::new(digits, [count]), (device, DType::F32))
}

fn decode(digits: Tensor<1>) -> Vec<u64> {
    let digits: Vec<f32> = digits.into_data().try_to_vec().expect("an f32 tensor");
    let word = |digits: &[f32]| digits.iter().rev().fold(0, |word, &digit| word << 16 | digit as u64);
    digits.chunks_exact(DIGITS).map(word).collect()
}

/// Sends `x` to all other ranks.
fn send(world: &Arc<dyn Link>, x: Tensor<1>) {
    world.exchange((1..world.size()).map(|to| (to, x.clone())).collect(), Vec::new()).wait();
}

#[cfg(test)]
mod tests {
    use xdit_comm::{LaunchOptions, run_ranks};

    use super::*;
    use crate::error::Error;
    use crate::link::HostLink;

    #[derive(Clone, Debug)]
    struct Conditions {
        text: Tensor<3>,
        pooled: Option<Tensor<2>>,
        scale: f32,
    }

    impl IntoParts for Conditions {
        fn into_parts(self) -> Parts {
            let tensors = [Some(self.text.into()), self.pooled.map(Part::from)];
            Parts { tensors: tensors.into_iter().flatten().collect(), numbers: vec![self.scale.into()] }
        }

        fn from_parts(parts: Parts) -> Self {
            let mut tensors = parts.tensors.into_iter();
            Self {
                text: tensors.next().unwrap().tensor(),
                pooled: tensors.next().map(Part::tensor),
                scale: parts.numbers[0] as f32,
            }
        }
    }

    fn conditions() -> Vec<Conditions> {
        let values = |count: usize| (0..count).map(|index| index as f32 * 0.25).collect::<Vec<_>>();
        let options = (&Device::flex(), DType::F32);
        let text = |n: usize| Tensor::from_data(TensorData::new(values(2 * n), [1, n, 2]), options);
        let pooled = Tensor::<2>::from_data(TensorData::new(values(4), [1, 4]), options).cast(DType::BF16);
        vec![
            Conditions { text: text(3), pooled: Some(pooled), scale: 0.1 },
            Conditions { text: text(1), pooled: None, scale: f32::MIN_POSITIVE },
        ]
    }

    #[test]
    fn numbers_survive() {
        let words = [0, 1, 65_535, 65_536, u64::MAX, 0.1f64.to_bits(), f64::NEG_INFINITY.to_bits()];
        assert_eq!(decode(encode(&words, &Device::flex())), words);
    }

    #[test]
    fn every_rank_has_the_conditions_of_the_first() {
        let ranks = run_ranks(3, &LaunchOptions::default(), |world| {
            let world = HostLink::new(world);
            let own = (world.rank() == 0).then(conditions);
            Ok::<_, Error>(broadcast(&world, own.as_deref(), &Device::flex()))
        });
        for of_rank in ranks.unwrap() {
            for (actual, expected) in of_rank.into_iter().zip(conditions()) {
                assert_eq!(actual.text.into_data(), expected.text.into_data());
                assert_eq!(actual.pooled.map(Tensor::into_data), expected.pooled.map(Tensor::into_data));
                assert_eq!(actual.scale.to_bits(), expected.scale.to_bits());
            }
        }
    }
}
