//! Conditions on their way from the first rank, which encoded the prompts, to all others.

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::{Buffer, BufferSpec, Comm, DType as WireType};

use crate::link::{Place, buffer, wait};
use crate::transformer::{IntoParts, Part, Parts};

/// The types of tensors that travel, by their number in a header.
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// `values` of the first rank of `world`, on each rank, on its `device`. Only the first rank needs to have them.
///
/// # Panics
/// If the first rank has none.
pub(crate) fn broadcast<C: IntoParts + Clone>(world: &Comm, values: Option<&[C]>, device: &Device) -> Vec<C> {
    if world.rank() == 0 {
        let values = values.expect("the first rank has the conditions");
        let values: Vec<Parts> = values.iter().cloned().map(C::into_parts).collect();
        let header = header(&values);
        send(world, Buffer::from_vec((header.len() as u64).to_le_bytes().to_vec()));
        send(world, Buffer::from_vec(header));
        for part in values.iter().flat_map(|parts| &parts.tensors) {
            send(world, buffer(part.x.clone()));
        }
        return values.into_iter().map(C::from_parts).collect();
    }
    let len = receive(world, BufferSpec::new(WireType::U8, 8));
    let len = Words(len.bytes()).next() as usize;
    let header = receive(world, BufferSpec::new(WireType::U8, len));
    let mut words = Words(header.bytes());
    let tensor = |words: &mut Words<'_>| {
        let place = Place { dtype: DTYPES[words.next() as usize], device: device.clone() };
        let shape: Vec<usize> = (0..words.next()).map(|_| words.next() as usize).collect();
        let count = [shape.iter().product()];
        let x: Tensor<1> = place.tensor(&receive(world, place.spec(count)), count);
        Part { x, shape }
    };
    let value = |words: &mut Words<'_>| {
        let numbers = (0..words.next()).map(|_| f64::from_bits(words.next())).collect();
        let tensors = (0..words.next()).map(|_| tensor(words)).collect();
        C::from_parts(Parts { tensors, numbers })
    };
    (0..words.next()).map(|_| value(&mut words)).collect()
}

/// How many values there are; of each its numbers, and type and shape of its tensors: words of 8 bytes.
fn header(values: &[Parts]) -> Vec<u8> {
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
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The words of a header that are still to be read.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> u64 {
        let (word, rest) = self.0.split_first_chunk().expect("a header is as long as it says");
        self.0 = rest;
        u64::from_le_bytes(*word)
    }
}

fn send(world: &Comm, buffer: Buffer) {
    let spec = buffer.spec();
    wait(world.broadcast(0, Some(buffer), spec));
}

fn receive(world: &Comm, spec: BufferSpec) -> Buffer {
    wait(world.broadcast(0, None, spec))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use xdit_comm::{LaunchOptions, run_ranks};

    use super::*;
    use crate::error::Error;

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
    fn every_rank_has_the_conditions_of_the_first() {
        let ranks = run_ranks(3, &LaunchOptions::default(), |world| {
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
