//! The conditions of each transformer as tensors and numbers, the form in which they are sent between ranks.

use xdit_core::transformer::{IntoParts, Part, Parts};

use crate::{dit, flux, hunyuan, pixart, sd3, unet};

impl IntoParts for pixart::Conditions {
    fn into_parts(self) -> Parts {
        let tensors = [Some(self.text.into()), self.bias.map(Part::from)];
        let numbers = self.size.into_iter().flatten().map(|side| side as f64);
        Parts { tensors: tensors.into_iter().flatten().collect(), numbers: numbers.collect() }
    }

    fn from_parts(parts: Parts) -> Self {
        let mut tensors = parts.tensors.into_iter();
        let text = tensors.next().expect("the text").tensor();
        let size = <[f64; 2]>::try_from(parts.numbers).ok();
        Self {
            text,
            bias: tensors.next().map(Part::tensor),
            size: size.map(|size| size.map(|side| side as usize)),
        }
    }
}

impl IntoParts for dit::Conditions {
    fn into_parts(self) -> Parts {
        Parts { tensors: Vec::new(), numbers: vec![self.class as f64] }
    }

    fn from_parts(parts: Parts) -> Self {
        Self { class: parts.numbers[0] as usize }
    }
}

impl IntoParts for sd3::Conditions {
    fn into_parts(self) -> Parts {
        Parts { tensors: vec![self.text.into(), self.pooled.into()], numbers: Vec::new() }
    }

    fn from_parts(parts: Parts) -> Self {
        let [text, pooled] = pair(parts.tensors);
        Self { text: text.tensor(), pooled: pooled.tensor() }
    }
}

impl IntoParts for unet::Conditions {
    fn into_parts(self) -> Parts {
        let numbers = self.micro.into_iter().map(f64::from).collect();
        Parts { tensors: vec![self.text.into(), self.pooled.into()], numbers }
    }

    fn from_parts(parts: Parts) -> Self {
        let [text, pooled] = pair(parts.tensors);
        let mut numbers = parts.numbers.into_iter();
        let micro = std::array::from_fn(|_| numbers.next().expect("six numbers") as f32);
        Self { text: text.tensor(), pooled: pooled.tensor(), micro }
    }
}

impl IntoParts for flux::Conditions {
    fn into_parts(self) -> Parts {
        let tensors = vec![self.text.into(), self.pooled.into()];
        Parts { tensors, numbers: vec![self.guidance.into()] }
    }

    fn from_parts(parts: Parts) -> Self {
        let [text, pooled] = pair(parts.tensors);
        Self { text: text.tensor(), pooled: pooled.tensor(), guidance: parts.numbers[0] as f32 }
    }
}

impl IntoParts for hunyuan::Conditions {
    fn into_parts(self) -> Parts {
        let sizes = self.sizes.into_iter().flatten();
        let numbers = [self.t5_tokens].into_iter().chain(sizes).map(|number| number as f64);
        Parts { tensors: vec![self.bert.into(), self.t5.into()], numbers: numbers.collect() }
    }

    fn from_parts(parts: Parts) -> Self {
        let [bert, t5] = pair(parts.tensors);
        let numbers: Vec<usize> = parts.numbers.into_iter().map(|number| number as usize).collect();
        Self {
            bert: bert.tensor(),
            t5: t5.tensor(),
            t5_tokens: numbers[0],
            sizes: numbers[1..].try_into().ok(),
        }
    }
}

/// The text and the pooled text, or two texts.
fn pair(tensors: Vec<Part>) -> [Part; 2] {
    tensors.try_into().expect("two tensors")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Tensor, TensorData};

    use super::*;

    fn tensor<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|index| index as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    /// Compares the debug output: shapes, types, values and numbers.
    fn survives<C: IntoParts + Clone + std::fmt::Debug>(conditions: &C) {
        let again = C::from_parts(conditions.clone().into_parts());
        assert_eq!(format!("{again:?}"), format!("{conditions:?}"));
    }

    #[test]
    fn nothing_is_lost_on_the_way() {
        for (bias, size) in [(None, None), (Some(tensor([1, 1, 1, 3])), Some([512, 768]))] {
            survives(&pixart::Conditions { text: tensor([1, 3, 4]), bias, size });
        }
        survives(&dit::Conditions { class: 1000 });
        for sizes in [None, Some([1024, 768, 512, 256, 3, 4])] {
            let (bert, t5) = (tensor([1, 3, 4]), tensor([1, 5, 2]));
            survives(&hunyuan::Conditions { bert, t5, t5_tokens: 4, sizes });
        }
        survives(&sd3::Conditions { text: tensor([1, 3, 4]), pooled: tensor([1, 5]) });
        let micro = [512.0, 768.0, 8.0, 16.0, 1024.0, 960.0];
        survives(&unet::Conditions { text: tensor([1, 3, 4]), pooled: tensor([1, 5]), micro });
        survives(&flux::Conditions { text: tensor([1, 3, 4]), pooled: tensor([1, 5]), guidance: 3.7 });
    }
}
