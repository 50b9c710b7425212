//! Weights on their way from a checkpoint into a model.

mod table;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, Entry};
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::link::fail;
use crate::placement::Share;
use crate::placement::{self, Placement, Run, TensorShare};

pub use table::Table;
use values::{mapped, read};

/// A place in a checkpoint from which a model takes its tensors by name.
///
/// Names are relative: [`at`](Self::at) goes one level down, as in `weights.at("blocks").at(3)`. Each tensor
/// that is taken is ticked off, and [`finish`](Self::finish) reports what nobody took.
///
/// A tensor for the CPU that already is of the wanted type is not copied: it lies in the mapped file.
#[derive(Clone)]
pub struct Weights {
    source: Arc<Source>,
    prefix: String,
    dtype: DType,
    deferred: bool,
}

struct Source {
    checkpoint: Checkpoint,
    device: Device,
    /// Give tensors of the right shape that hold no data: the model is being checked, not loaded.
    check_only: bool,
    used: Mutex<BTreeSet<String>>,
    taken_bytes: AtomicU64,
    /// The blocks to load, if not all.
    blocks: Option<Range<usize>>,
    /// The heads and features to load, if not all, and which layers they are of.
    tensor: Option<(TensorShare, Vec<(&'static str, Placement)>)>,
}

impl Weights {
    /// Takes tensors from `checkpoint` and puts them on `device` as `dtype`.
    pub fn new(checkpoint: Checkpoint, device: &Device, dtype: DType) -> Self {
        Self::with(checkpoint, device, dtype, false)
    }

    /// Loads only one rank's share: some blocks, and of the layers in `placements` some heads and features. A
    /// layer is named by the end of its path, in which `*` stands for any one name.
    ///
    /// # Panics
    /// If the weights are in use already.
    #[must_use]
    pub fn of_share(mut self, share: Share, placements: Vec<(&'static str, Placement)>) -> Self {
        let source = Arc::get_mut(&mut self.source).expect("weights are set up before they are used");
        source.blocks = Some(share.blocks);
        source.tensor = share.tensor.map(|share| (share, placements));
        self
    }

    /// Which of the model's `count` blocks to load.
    pub fn blocks(&self, count: usize) -> Range<usize> {
        self.source.blocks.clone().unwrap_or(0..count)
    }

    /// Checks names, shapes and types as [`new`](Self::new) would, but reads nothing: every tensor is zeros
    /// that take no memory.
    pub fn check_only(checkpoint: Checkpoint, device: &Device, dtype: DType) -> Self {
        Self::with(checkpoint, device, dtype, true)
    }

    fn with(checkpoint: Checkpoint, device: &Device, dtype: DType, check_only: bool) -> Self {
        let source = Source {
            checkpoint,
            device: device.clone(),
            check_only,
            used: Mutex::new(BTreeSet::new()),
            taken_bytes: AtomicU64::new(0),
            blocks: None,
            tensor: None,
        };
        Self { source: Arc::new(source), prefix: String::new(), dtype, deferred: false }
    }

    /// The place one level down.
    pub fn at(&self, name: impl Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The same place, from which linear layers are checked now but read at each use, whole on every rank, and
    /// let go of after it: for layers that are used once before the first step. Where the file can no longer be read by
    /// then, the rank that uses the layer [fails](crate::link::catch).
    #[must_use]
    pub fn deferred(&self) -> Self {
        Self { deferred: true, ..self.clone() }
    }

    /// The same place, from which tensors are given as `dtype`.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Whether there is a tensor called `name` here.
    pub fn has(&self, name: &str) -> bool {
        self.source.checkpoint.get(&self.key(name)).is_some()
    }

    /// Bytes of what was taken so far, in the type it was given; slices count as slices. A
    /// [deferred](Self::deferred) layer counts whenever it is used, so after loading this is what the model holds.
    /// Where nothing is read because the model is only being checked, it is what it would hold.
    pub fn taken_bytes(&self) -> u64 {
        self.source.taken_bytes.load(Ordering::Relaxed)
    }

    /// The device that tensors go to.
    pub fn device(&self) -> &Device {
        &self.source.device
    }

    /// The type that tensors are given.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tensor called `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// If it is missing, has another shape, or a type that is not f32, f16 or bf16.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        self.rows(name, shape, 0..shape[0])
    }

    /// Some rows (of the first dimension) of the tensor called `name`, which must have exactly this shape. Only
    /// they are read.
    fn rows<const D: usize>(
        &self,
        name: &str,
        mut shape: [usize; D],
        rows: Range<usize>,
    ) -> Result<Tensor<D>> {
        let entry = self.entry(name, &shape)?;
        let row_bytes = entry.bytes.len().checked_div(shape[0]).unwrap_or(0);
        let range = rows.start * row_bytes..rows.end * row_bytes;
        shape[0] = rows.len();
        self.put(name, shape, || match mapped(entry, range.clone(), self.dtype) {
            Some(bytes) => Ok(TensorData::from_bytes(bytes, shape, self.dtype)),
            None => read(entry, [range], shape, self.dtype),
        })
    }

    /// Some columns of the matrix called `name`, which must have exactly this shape. Only they are read.
    fn columns(&self, name: &str, shape: [usize; 2], columns: &[Range<usize>]) -> Result<Tensor<2>> {
        let entry = self.entry(name, &shape)?;
        let [rows, width] = shape;
        let size = entry.bytes.len().checked_div(rows * width).unwrap_or(0);
        let kept = [rows, columns.iter().map(Range::len).sum()];
        self.put(name, kept, || {
            let ranges = (0..rows).flat_map(|row| {
                let place = move |column| (row * width + column) * size;
                columns.iter().map(move |columns| place(columns.start)..place(columns.end))
            });
            read(entry, ranges, kept, self.dtype)
        })
    }

    /// What `read` gives, on the device; zeros that take no memory if the model is only being checked.
    fn put<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        read: impl FnOnce() -> std::io::Result<TensorData>,
    ) -> Result<Tensor<D>> {
        let Source { device, check_only, taken_bytes, .. } = &*self.source;
        let dtype = self.dtype;
        let bytes = shape.iter().product::<usize>() * dtype.size();
        taken_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if *check_only {
            // A tensor without elements takes no memory by itself, and nothing expands to it.
            return Ok(match shape.contains(&0) {
                true => Tensor::zeros(shape, (device, dtype)),
                false => Tensor::<1>::zeros([1], (device, dtype)).reshape([1; D]).expand(shape),
            });
        }
        let data = read().map_err(|error| {
            let key = self.key(name);
            Error::failure(format!("cannot read tensor `{key}`: {error}"))
                .hint("the file changed after it was opened: check the disk it is on")
        })?;
        Ok(Tensor::from_data(data, (device, dtype)))
    }

    /// The tensor called `name` if there is one.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), except that it may be missing.
    pub fn optional<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Option<Tensor<D>>> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// The table called `name`, whose rows are the last dimension of exactly this shape. It is checked now, and rows
    /// are read when they are asked for.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Table> {
        self.entry(name, shape)?;
        Ok(Table { weights: self.clone(), name: name.to_owned(), shape: shape.to_vec() })
    }

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

    fn linear_here(&self, c_in: usize, c_out: usize, bias: bool) -> Result<Linear> {
        if self.deferred {
            self.entry("weight", &[c_out, c_in])?;
            if bias {
                self.entry("bias", &[c_out])?;
            }
            let weights = self.clone();
            return Ok(Linear::deferred(move || {
                weights.whole_linear(c_in, c_out, bias).unwrap_or_else(|error| fail(error))
            }));
        }
        let layer = self.prefix.trim_end_matches('.');
        let cut = self.source.tensor.as_ref().and_then(|(share, placements)| {
            let placed = placements.iter().find(|(pattern, _)| placement::matches(layer, pattern));
            placed.map(|(_, placement)| (share, placement))
        });
        let (share, runs) = match cut {
            None => return self.whole_linear(c_in, c_out, bias),
            Some((share, Placement::Outputs { unit })) => {
                let outputs = share.part(c_out, *unit);
                let weight = self.rows("weight", [c_out, c_in], outputs.clone())?;
                let bias = if bias { Some(self.rows("bias", [c_out], outputs)?) } else { None };
                return Ok(Linear::new(weight, bias));
            }
            Some((share, Placement::Inputs { unit })) => (share, &vec![Run { features: c_in, unit: *unit }]),
            Some((share, Placement::ConcatenatedInputs(runs))) => (share, runs),
        };
        let weight = self.columns("weight", [c_out, c_in], &share.parts(runs))?;
        let bias = if bias { Some(self.tensor("bias", [c_out])?) } else { None };
        Ok(Linear::new(weight, bias).summed_over(share.comm.clone()))
    }

    fn whole_linear(&self, c_in: usize, c_out: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor("weight", [c_out, c_in])?;
        Ok(Linear::new(weight, if bias { Some(self.tensor("bias", [c_out])?) } else { None }))
    }

    /// Says that the tensor called `name` is known and deliberately not used.
    pub fn ignore(&self, name: &str) {
        self.tick(self.key(name));
    }

    /// Ends a check: everything in the checkpoint must have been taken or [ignored](Self::ignore).
    ///
    /// # Errors
    /// If a tensor is left over. It would mean that the model is not the one the checkpoint was made for.
    pub fn finish(&self) -> Result<()> {
        let used = self.source.used.lock().expect("no thread panics while it holds the lock");
        let checkpoint = &self.source.checkpoint;
        let unused: Vec<_> = checkpoint.entries().filter(|(name, _)| !used.contains(*name)).collect();
        let Some((first, entry)) = unused.first() else { return Ok(()) };
        let others = match unused.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Err(Error::failure(format!(
            "tensor `{first}`{others} in `{}` belongs to no part of the model",
            checkpoint.files()[entry.file].display()
        ))
        .hint("the weights and the `config.json` beside them do not describe the same model"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn tick(&self, key: String) {
        self.source.used.lock().expect("no thread panics while it holds the lock").insert(key);
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let key = self.key(name);
        let checkpoint = &self.source.checkpoint;
        let Some(entry) = checkpoint.get(&key) else {
            return Err(Error::failure(format!(
                "tensor `{key}` is missing from `{}`",
                checkpoint.files()[0].display()
            ))
            .hint("the weights and the `config.json` beside them do not describe the same model"));
        };
        let file = checkpoint.files()[entry.file].display();
        if entry.shape != shape {
            return Err(Error::failure(format!(
                "tensor `{key}` in `{file}` has shape {:?}, expected {shape:?}",
                entry.shape
            ))
            .hint("the weights and the `config.json` beside them do not describe the same model"));
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::failure(format!(
                "tensor `{key}` in `{file}` has type {:?}, expected F32, F16 or BF16",
                entry.dtype
            ))
            .hint("quantised checkpoints are not supported: use the original weights"));
        }
        self.tick(key);
        Ok(entry)
    }
}
