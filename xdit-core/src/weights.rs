//! Loading of weights from a checkpoint into a model.

mod layers;
mod random;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::{AddAssign, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, Entry};
use crate::error::{Error, Result};
use crate::placement::{Placement, Share, TensorShare};

pub use layers::{Residency, SharedLayers};
use random::RandomValues;
pub use table::Table;
use values::{mapped, read};

/// A place in a checkpoint from which a model takes its tensors by name.
///
/// Names are relative: [`at`](Self::at) goes one level down, as in `weights.at("blocks").at(3)`. Each tensor
/// that is taken is marked as used, and [`finish`](Self::finish) reports the tensors left over.
///
/// A tensor for the CPU that already has the wanted type is not copied: it stays in the mapped file.
#[derive(Clone)]
pub struct Weights {
    source: Arc<Source>,
    prefix: String,
    dtype: DType,
    once: bool,
}

struct Source {
    checkpoint: Checkpoint,
    device: Device,
    /// Return tensors of the right shape without data: the model is being checked, not loaded.
    check_only: bool,
    /// Random values for all tensors, in place of those in the files.
    random: Option<RandomValues>,
    used: Mutex<BTreeSet<String>>,
    /// The tensors that were ignored as extra.
    extra: Mutex<BTreeSet<String>>,
    taken: Mutex<ParameterBytes>,
    loaded: Mutex<ParameterBytes>,
    /// The layers shared with other ranks.
    shared: SharedLayers,
    /// The residency of layers that are used only for contexts.
    residency: Residency,
    /// The blocks to load, if not all.
    blocks: Option<Range<usize>>,
    /// The rank's part of layers that are cut, and the placements of these layers.
    tensor: Option<(TensorShare, Vec<(String, Placement)>)>,
}

/// Bytes of parameters, in the type to which they are converted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterBytes {
    /// Parameters that are used in every step.
    pub steps: u64,
    /// Layers that are used [only for contexts](Weights::once).
    pub once: u64,
}

/// How long a tensor stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// As long as a model.
    Long,
    /// Until it is a part of another tensor.
    Briefly,
}

impl Stay {
    /// Calls `make` with the memory that suits the stay of its result.
    fn allocate<T: Send, R: Send>(self, device: &Device, from: T, make: impl Fn(T) -> R + Send) -> R {
        match self {
            // CubeCL looks for room among all memory that is not persistent, at each allocation.
            Self::Long => device.memory_persistent_allocations(from, make),
            Self::Briefly => make(from),
        }
    }
}

impl AddAssign for ParameterBytes {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.once += other.once;
    }
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
    pub fn of_share(mut self, share: Share, placements: Vec<(String, Placement)>) -> Self {
        let source = self.set_up();
        source.blocks = Some(share.blocks);
        source.tensor = share.tensor.map(|share| (share, placements));
        self
    }

    /// Shares linear layers with all other weights that have clones of the same `layers`.
    ///
    /// # Panics
    /// If the weights are in use already.
    #[must_use]
    pub fn sharing(mut self, layers: &SharedLayers) -> Self {
        self.set_up().shared = layers.clone();
        self
    }

    /// Returns random values of the right shapes, made on the device, instead of the values in the files: for benchmarks.
    /// Matrices keep the variance of their inputs.
    ///
    /// # Panics
    /// If the weights are in use already.
    #[must_use]
    pub fn with_random_values(mut self) -> Self {
        let source = self.set_up();
        source.random = Some(RandomValues::new(&source.device));
        self
    }

    /// Sets the residency of layers that are used [only for contexts](Self::once). By default they stay in memory.
    ///
    /// # Panics
    /// If the weights are in use already.
    #[must_use]
    pub fn with_residency(mut self, residency: Residency) -> Self {
        self.set_up().residency = residency;
        self
    }

    fn set_up(&mut self) -> &mut Source {
        Arc::get_mut(&mut self.source).expect("weights are set up before they are used")
    }

    /// Which of the model's `count` blocks to load.
    pub fn blocks(&self, count: usize) -> Range<usize> {
        self.source.blocks.clone().unwrap_or(0..count)
    }

    /// Checks names, shapes and types as [`new`](Self::new) would, but reads nothing: every tensor is zeros
    /// that take no memory. They are on the CPU, so no other device is opened for a check.
    pub fn check_only(checkpoint: Checkpoint, dtype: DType) -> Self {
        Self::with(checkpoint, &Device::flex(), dtype, true)
    }

    fn with(checkpoint: Checkpoint, device: &Device, dtype: DType, check_only: bool) -> Self {
        let source = Source {
            checkpoint,
            device: device.clone(),
            check_only,
            random: None,
            used: Mutex::default(),
            extra: Mutex::default(),
            taken: Mutex::default(),
            loaded: Mutex::default(),
            shared: SharedLayers::default(),
            residency: Residency::default(),
            blocks: None,
            tensor: None,
        };
        Self { source: Arc::new(source), prefix: String::new(), dtype, once: false }
    }

    /// The place one level down.
    pub fn at(&self, name: impl Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The same place, for linear layers that are used only in [`contexts`](crate::transformer::Transformer::contexts).
    /// Every rank has them whole. The [residency](Residency) of the run decides whether they stay in memory or are read
    /// at each use. If the file can no longer be read then, the rank that uses the layer [fails](crate::link::catch).
    #[must_use]
    pub fn once(&self) -> Self {
        Self { once: true, ..self.clone() }
    }

    /// The same place, with tensors converted to `dtype`.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Whether there is a tensor called `name` here.
    pub fn has(&self, name: &str) -> bool {
        self.source.checkpoint.get(&self.key(name)).is_some()
    }

    /// Bytes of the parameters taken so far; a slice counts with its own size. With [`check_only`](Self::check_only),
    /// the bytes that loading would take.
    pub fn taken(&self) -> ParameterBytes {
        *lock(&self.source.taken)
    }

    /// Bytes of the [taken](Self::taken) parameters that stay in memory: layers read at each use do not count.
    pub fn taken_bytes(&self) -> u64 {
        let ParameterBytes { steps, once } = self.taken();
        match self.source.residency {
            Residency::Hold => steps + once,
            Residency::Reread => steps,
        }
    }

    /// Bytes loaded so far. Layers that [other weights](Self::sharing) held already are left out; layers that are read
    /// again count again.
    pub fn loaded(&self) -> ParameterBytes {
        *lock(&self.source.loaded)
    }

    /// Adds the bytes of `numbers` elements to `count`.
    fn count(&self, count: &Mutex<ParameterBytes>, numbers: usize) {
        let bytes = (numbers * self.dtype.size()) as u64;
        let (steps, once) = if self.once { (0, bytes) } else { (bytes, 0) };
        *lock(count) += ParameterBytes { steps, once };
    }

    /// The device that tensors go to.
    pub fn device(&self) -> &Device {
        &self.source.device
    }

    /// The type to which tensors are converted.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The tensor called `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// If it is missing, has another shape, or a type that is not f32, f16 or bf16.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        let tensor = self.rows(name, shape, std::slice::from_ref(&(0..shape[0])))?;
        self.count(&self.source.taken, tensor.shape().num_elements());
        Ok(tensor)
    }

    /// Some ranges of rows (of the first dimension) of the tensor called `name`, which must have exactly this shape. Only
    /// they are read.
    fn rows<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        rows: &[Range<usize>],
    ) -> Result<Tensor<D>> {
        self.rows_of(&shape, name, shape, rows, Stay::Long)
    }

    /// As [`rows`](Self::rows), of a tensor that has the shape `stored` in the file, with as many rows and elements, and
    /// for a tensor that stays in memory for so long.
    fn rows_of<const D: usize>(
        &self,
        stored: &[usize],
        name: &str,
        mut shape: [usize; D],
        rows: &[Range<usize>],
        stay: Stay,
    ) -> Result<Tensor<D>> {
        let entry = self.entry(name, stored)?;
        let row_bytes = entry.bytes.len().checked_div(shape[0]).unwrap_or(0);
        let bytes = |rows: &Range<usize>| rows.start * row_bytes..rows.end * row_bytes;
        shape[0] = rows.iter().map(Range::len).sum();
        let in_place = || match rows {
            [rows] => mapped(entry, bytes(rows), self.dtype),
            _ => None,
        };
        self.put(name, shape, stay, || match in_place() {
            Some(bytes) => Ok(TensorData::from_bytes(bytes, shape, self.dtype)),
            None => read(entry, rows.iter().map(bytes), shape, self.dtype),
        })
    }

    /// Some columns of the matrix called `name`, which must have exactly this shape. Only they are read.
    fn columns(&self, name: &str, shape: [usize; 2], columns: &[Range<usize>]) -> Result<Tensor<2>> {
        let entry = self.entry(name, &shape)?;
        let [rows, width] = shape;
        let size = entry.bytes.len().checked_div(rows * width).unwrap_or(0);
        let kept = [rows, columns.iter().map(Range::len).sum()];
        self.put(name, kept, Stay::Long, || {
            let ranges = (0..rows).flat_map(|row| {
                let place = move |column| (row * width + column) * size;
                columns.iter().map(move |columns| place(columns.start)..place(columns.end))
            });
            read(entry, ranges, kept, self.dtype)
        })
    }

    /// Puts the result of `read` on the device. With [`check_only`](Self::check_only), returns zeros that take no
    /// memory.
    fn put<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        stay: Stay,
        read: impl FnOnce() -> std::io::Result<TensorData>,
    ) -> Result<Tensor<D>> {
        let Source { device, check_only, random, loaded, .. } = &*self.source;
        let dtype = self.dtype;
        self.count(loaded, shape.iter().product());
        if *check_only {
            // A tensor without elements takes no memory by itself, and nothing expands to it.
            return Ok(match shape.contains(&0) {
                true => Tensor::zeros(shape, (device, dtype)),
                false => Tensor::<1>::zeros([1], (device, dtype)).reshape([1; D]).expand(shape),
            });
        }
        if let Some(random) = random {
            return Ok(random.tensor(shape, dtype, stay));
        }
        let data = read().map_err(|error| {
            let key = self.key(name);
            Error::failure(format!("cannot read tensor `{key}`: {error}"))
                .hint("the file changed after it was opened: check the disk it is on")
        })?;
        Ok(stay.allocate(device, data, |data| Tensor::from_data(data, (device, dtype))))
    }

    /// The tensor called `name` if there is one.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), except that it may be missing.
    pub fn optional<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Option<Tensor<D>>> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// The table called `name`, which must have exactly this shape; its rows are the last dimension. It is checked now,
    /// and rows are read at each use.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Table> {
        self.entry(name, shape)?;
        Ok(Table { weights: self.clone(), name: name.to_owned(), shape: shape.to_vec() })
    }

    /// Marks the tensor called `name` as known and deliberately unused.
    pub fn ignore(&self, name: &str) {
        self.tick(self.key(name));
    }

    /// Marks tensors as deliberately unused that the reference ignores in published files, unlike others that are left
    /// over. A part names all tensors that begin with it or, if it begins with a dot, contain it.
    pub fn ignore_extra(&self, parts: &[&str]) {
        let is_extra = |name: &str| {
            let rest = name.strip_prefix(&*self.prefix);
            let is_in = |part: &&str, rest: &str| {
                if part.starts_with('.') { rest.contains(*part) } else { rest.starts_with(*part) }
            };
            rest.is_some_and(|rest| parts.iter().any(|part| is_in(part, rest)))
        };
        for (name, _) in self.source.checkpoint.entries().filter(|(name, _)| is_extra(name)) {
            self.tick(name.to_owned());
            lock(&self.source.extra).insert(name.to_owned());
        }
    }

    /// A sentence on the tensors that were [ignored as extra](Self::ignore_extra), if there are any.
    pub fn extra(&self) -> Option<String> {
        let extra = lock(&self.source.extra);
        let first = extra.first()?;
        let (count, file) = (extra.len(), self.source.checkpoint.get(first)?.file);
        let file = self.source.checkpoint.files()[file].display();
        Some(match count {
            1 => format!("tensor `{first}` in `{file}` is ignored: the model does not use it"),
            _ => format!(
                "{count} tensors in `{file}`, such as `{first}`, are ignored: the model does not use them"
            ),
        })
    }

    /// Ends a check: everything in the checkpoint must have been taken or [ignored](Self::ignore).
    ///
    /// # Errors
    /// If a tensor is left over. It would mean that the model is not the one the checkpoint was made for.
    pub fn finish(&self) -> Result<()> {
        let used = lock(&self.source.used);
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
        lock(&self.source.used).insert(key);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds the lock")
}
