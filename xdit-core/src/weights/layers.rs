//! Loading of linear layers, whole or as a rank's part, and of convolutions, shared with other ranks of the process.

use std::fmt::Display;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::{Source, Stay, Weights};
use crate::error::Result;
use crate::linear::{Linear, Linears, Parameters};
use crate::link::{Link, fail};
use crate::placement::{self, Placement, Run};
use crate::shared::Shared;

/// The layers of one checkpoint in this process. Ranks whose [`Weights`] have clones of the same value hold equal parts
/// of a layer on one device only once. A layer is freed with the last model that uses it.
#[derive(Clone, Debug, Default)]
pub struct SharedLayers {
    linear: Arc<Shared<Key, Parameters>>,
    convolutions: Arc<Shared<Key, Parameters<4>>>,
}

/// A part of a layer, with its type and device.
#[derive(PartialEq, Eq)]
struct Key {
    layer: String,
    part: Part,
    dtype: DType,
    device: Device,
}

impl Hash for Key {
    /// Hashes all but the device, which has no hash and is only compared.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.layer, &self.part, &self.dtype).hash(state);
    }
}

/// The part of a layer that a rank holds.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    Outputs(Vec<Range<usize>>),
    Inputs(Vec<Range<usize>>),
}

impl Part {
    /// The output features of this part of a layer that has `c_out` of them.
    fn outputs(&self, c_out: usize) -> Vec<Range<usize>> {
        match self {
            Self::Outputs(outputs) => outputs.clone(),
            Self::Whole | Self::Inputs(_) => std::iter::once(0..c_out).collect(),
        }
    }
}

/// The residency of layers that are used [only for contexts](Weights::once).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// They stay in memory.
    #[default]
    Hold,
    /// They are read at each use, and take no memory while steps run.
    Reread,
}

impl Weights {
    /// The linear layer called `name`, with a bias.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn linear(&self, name: impl Display, c_in: usize, c_out: usize) -> Result<Linear> {
        self.at(name).linear_here(c_in, c_out, true)
    }

    /// The linear layer called `name`, without a bias.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn linear_without_bias(&self, name: impl Display, c_in: usize, c_out: usize) -> Result<Linear> {
        self.at(name).linear_here(c_in, c_out, false)
    }

    /// The linear layers called `names`, which have one input. On accelerators, their weights are one matrix in memory, so
    /// that they are one product: the devices are faster on few large products. On the CPU, each weight stays in its
    /// mapped file.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn linears<const N: usize>(
        &self,
        names: [&str; N],
        c_in: usize,
        c_out: usize,
        bias: bool,
    ) -> Result<Linears<N>> {
        let parts = names.map(|name| self.at(name).part(c_in, c_out));
        let is_cut = parts.iter().any(|(_, summed_over)| summed_over.is_some());
        let Source { device, check_only, .. } = &*self.source;
        if *device == Device::flex() || *check_only || is_cut || self.once {
            let layers: Vec<_> = names
                .iter()
                .map(|name| self.at(name).linear_here(c_in, c_out, bias))
                .collect::<Result<_>>()?;
            let layers = layers.try_into().unwrap_or_else(|_| unreachable!("a layer for each name"));
            return Ok(Linears::apart(layers));
        }
        let rows = parts.map(|(part, _)| part.outputs(c_out));
        let key =
            Key { layer: format!("{}{{{}}}", self.prefix, names.join(",")), ..self.shared_key(Part::Whole) };
        let key = Key { part: Part::Outputs(rows.concat()), ..key };
        let parameters = self.source.shared.linear.get(key, || {
            Ok::<_, crate::Error>(Parameters {
                weight: self.joined_rows(names, "weight", [c_out, c_in], &rows)?,
                bias: bias.then(|| self.joined_rows(names, "bias", [c_out], &rows)).transpose()?,
            })
        })?;
        for name in names {
            // A layer that another rank has loaded is marked as used here, too.
            self.at(name).entry("weight", &[c_out, c_in])?;
            if bias {
                self.at(name).entry("bias", &[c_out])?;
            }
        }
        let features = rows.map(|rows| rows.iter().map(Range::len).sum());
        let all: usize = features.iter().sum();
        self.count(&self.source.taken, all * c_in + if bias { all } else { 0 });
        Ok(Linears::joined(Linear::held(parameters), features))
    }

    /// The rows of the tensors called `tensor` of the layers `names`, one behind the other.
    fn joined_rows<const N: usize, const D: usize>(
        &self,
        names: [&str; N],
        tensor: &str,
        shape: [usize; D],
        rows: &[Vec<Range<usize>>; N],
    ) -> Result<Tensor<D>> {
        let part = |(name, rows): (&&str, &Vec<Range<usize>>)| {
            self.at(name).rows_of(&shape, tensor, shape, rows, Stay::Briefly)
        };
        let parts = names.iter().zip(rows).map(part).collect::<Result<Vec<_>>>()?;
        Ok(self.source.device.memory_persistent_allocations(parts, |parts| Tensor::cat(parts, 0)))
    }

    fn linear_here(&self, c_in: usize, c_out: usize, bias: bool) -> Result<Linear> {
        self.entry("weight", &[c_out, c_in])?;
        if bias {
            self.entry("bias", &[c_out])?;
        }
        if self.once && self.source.residency == Residency::Reread {
            self.count(&self.source.taken, c_out * c_in + if bias { c_out } else { 0 });
            let weights = self.clone();
            return Ok(Linear::reread(c_out, move || {
                weights.parameters(c_in, c_out, bias, Part::Whole).unwrap_or_else(|error| fail(error))
            }));
        }
        let (part, summed_over) = if self.once { (Part::Whole, None) } else { self.part(c_in, c_out) };
        let parameters = self.parameters(c_in, c_out, bias, part)?;
        let Parameters { weight, bias } = &*parameters;
        let numbers = |bias: &Tensor<1>| bias.shape().num_elements();
        self.count(&self.source.taken, weight.shape().num_elements() + bias.as_ref().map_or(0, numbers));
        let linear = Linear::held(parameters);
        Ok(match summed_over {
            Some(link) => linear.summed_over(link),
            None => linear,
        })
    }

    /// This rank's part of the layer here, and the link over which it is summed, if its inputs are cut.
    fn part(&self, c_in: usize, c_out: usize) -> (Part, Option<Arc<dyn Link>>) {
        let Some((share, placements)) = &self.source.tensor else { return (Part::Whole, None) };
        let layer = self.layer();
        let placed = placements.iter().find(|(pattern, _)| placement::matches(layer, pattern));
        let inputs = |runs: &[Run]| (Part::Inputs(share.parts(runs)), Some(share.link.clone()));
        match placed.map(|(_, placement)| placement) {
            None => (Part::Whole, None),
            Some(Placement::Outputs { unit }) => (Part::Outputs(vec![share.part(c_out, *unit)]), None),
            Some(Placement::ConcatenatedOutputs(runs)) => (Part::Outputs(share.parts(runs)), None),
            Some(Placement::Inputs { unit }) => inputs(&[Run { features: c_in, unit: *unit }]),
            Some(Placement::ConcatenatedInputs(runs)) => inputs(runs),
        }
    }

    /// Weight and bias of a part of the layer here. The bias is whole if inputs are cut.
    fn parameters(&self, c_in: usize, c_out: usize, bias: bool, part: Part) -> Result<Arc<Parameters>> {
        self.source.shared.linear.get(self.shared_key(part.clone()), || {
            let outputs = part.outputs(c_out);
            let weight = match &part {
                Part::Inputs(inputs) => self.columns("weight", [c_out, c_in], inputs)?,
                Part::Whole | Part::Outputs(_) => self.rows("weight", [c_out, c_in], &outputs)?,
            };
            let bias = bias.then(|| self.rows("bias", [c_out], &outputs)).transpose()?;
            Ok(Parameters { weight, bias })
        })
    }

    /// Weight and bias of the convolution here, which has a square kernel of side `kernel`.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn convolution(&self, c_in: usize, c_out: usize, kernel: usize) -> Result<Arc<Parameters<4>>> {
        let shape = [c_out, c_in, kernel, kernel];
        self.convolution_here(&shape, shape)
    }

    /// Weight and bias of the convolution here over `frames` frames of a clip, which keeps to a place: its kernel in the file is
    /// `[frames, 1, 1]`, and `[frames, 1]` in the result.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn temporal_convolution(
        &self,
        c_in: usize,
        c_out: usize,
        frames: usize,
    ) -> Result<Arc<Parameters<4>>> {
        self.convolution_here(&[c_out, c_in, frames, 1, 1], [c_out, c_in, frames, 1])
    }

    /// Weight and bias of the convolution here, whose weight has the shape `stored` in the file.
    fn convolution_here(&self, stored: &[usize], shape: [usize; 4]) -> Result<Arc<Parameters<4>>> {
        let c_out = shape[0];
        self.entry("weight", stored)?;
        self.entry("bias", &[c_out])?;
        self.count(&self.source.taken, shape.iter().product::<usize>() + c_out);
        self.source.shared.convolutions.get(self.shared_key(Part::Whole), || {
            let all = 0..c_out;
            let all = std::slice::from_ref(&all);
            let weight = self.rows_of(stored, "weight", shape, all, Stay::Long)?;
            Ok(Parameters { weight, bias: Some(self.rows("bias", [c_out], all)?) })
        })
    }

    /// The key of a part of the layer here among those that ranks share.
    fn shared_key(&self, part: Part) -> Key {
        let (dtype, device) = (self.dtype, self.source.device.clone());
        Key { layer: self.layer().to_owned(), part, dtype, device }
    }

    /// The path of the layer here.
    fn layer(&self) -> &str {
        self.prefix.trim_end_matches('.')
    }
}
