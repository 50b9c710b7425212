//! Group norm on CubeCL's backends: moments of parts of a group, which are merged; and their application in one pass,
//! in place where the memory is free. Images are taken channel by channel or, if their channels lie together, pixel by
//! pixel.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;

use super::{GroupNormOps, reference_group_norm_moments, reference_norm_act};
use crate::cube::reduce::Plan;
use crate::cube::{
    InPlace, UNITS, addresses, buffer, cubes, dims, elem, empty, is_pixels, takes, wide, width,
};

/// Elements of a group that one cube takes. All types are cut and summed alike.
const PART: usize = UNITS * OF_UNIT;

/// Elements of a part that one unit takes, in steps of [`STEP`].
const OF_UNIT: usize = 32;

/// Elements next to each other that one unit takes.
const STEP: usize = 8;

/// Pixels whose moments a unit computes at a time.
const PIXELS: usize = 8;

/// The most times that it does.
const MOST_CHUNKS: usize = 32;

/// Cubes that keep a large device busy.
const MANY_CUBES: usize = 512;

/// Numbers that are kept of a part: its mean, what rounding took from that, its squared deviations, and its elements.
const RECORD: usize = 4;

impl GroupNormOps for CubeBackend {
    fn group_norm_moments(x: CubeTensor, groups: usize) -> (CubeTensor, CubeTensor) {
        if takes([&x]) { moments(x, groups) } else { reference_group_norm_moments::<Self>(x, groups) }
    }

    fn norm_act(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, act: bool) -> CubeTensor {
        if takes([&x, &scale, &shift]) {
            norm_act(x, scale, shift, act)
        } else {
            reference_norm_act::<Self>(x, scale, shift, act)
        }
    }
}

fn moments(x: CubeTensor, groups: usize) -> (CubeTensor, CubeTensor) {
    let [b, c, rows, cols] = dims(&x);
    assert_eq!(c % groups, 0, "{groups} groups of {c} channels");
    let count = c / groups * rows * cols;
    if b * count == 0 {
        let zeros = || zeros(x.device.clone(), [b, groups].into(), DType::F32);
        return (zeros(), zeros());
    }
    let (of_parts, parts) = match is_pixels(&x) && c / width([&x], [c]) <= UNITS {
        true => moments_of_pixels(&x, groups),
        false => moments_of_parts(into_contiguous(x.clone()), groups),
    };
    let client = x.client.clone();
    let plan = Plan::whole(&client);
    let [mean, deviation] = [(); 2].map(|()| empty(&x, [b, groups], DType::F32));
    let (cube_count, dim) = cubes(&client, b * groups * UNITS);
    // SAFETY: units read the moments of parts of their group; the first unit of a cube writes those of the group.
    unsafe {
        kernel::merge_parts::launch_unchecked(
            &client,
            cube_count,
            dim,
            addresses([&of_parts]),
            buffer(&of_parts),
            buffer(&mean),
            buffer(&deviation),
            count,
            parts,
            b * groups,
            plan,
        );
    }
    (mean, deviation)
}

/// The moments of the parts of each group, and their number.
fn moments_of_parts(x: CubeTensor, groups: usize) -> (CubeTensor, usize) {
    let [b, c, rows, cols] = dims(&x);
    let count = c / groups * rows * cols;
    let client = x.client.clone();
    let parts = count.div_ceil(PART);
    let width = width([&x], [count, STEP]);
    let of_parts = empty(&x, [b * groups, parts, RECORD], DType::F32);
    let (cube_count, dim) = cubes(&client, b * groups * parts * UNITS);
    // SAFETY: units read vectors of their group below its count; the first unit of a cube writes the moments of its
    // part.
    unsafe {
        kernel::moments_of_parts::launch_unchecked(
            &client,
            cube_count,
            dim,
            addresses([&x]),
            width,
            buffer(&x),
            buffer(&of_parts),
            count,
            parts,
            b * groups * parts,
            Plan::whole(&client),
            elem(x.dtype),
        );
    }
    (of_parts, parts)
}

/// As [`moments_of_parts`], for an image whose channels lie together. A part belongs to some pixels and to the channels
/// of a vector, or of the vector's share in a group.
fn moments_of_pixels(x: &CubeTensor, groups: usize) -> (CubeTensor, usize) {
    let [b, c, rows, cols] = dims(x);
    let pixels = rows * cols;
    let width = width([x], [c]);
    let vectors = c / width;
    // Pixels that a cube reads at a time, one a unit.
    let abreast = UNITS / vectors;
    let chunks = (b * pixels / (abreast * PIXELS * MANY_CUBES)).clamp(1, MOST_CHUNKS);
    let cubes_of_image = pixels.div_ceil(abreast * PIXELS * chunks);
    let of_group = c / groups;
    let together = (1..=width)
        .rev()
        .find(|lanes| width.is_multiple_of(*lanes) && of_group.is_multiple_of(*lanes))
        .unwrap_or(1);
    let parts = cubes_of_image * abreast * (of_group / together);
    let of_parts = empty(x, [b * groups, parts, RECORD], DType::F32);
    let (count, dim) = cubes(&x.client, b * cubes_of_image * UNITS);
    // SAFETY: units read vectors of pixels of their image, and each writes the moments of its own parts.
    unsafe {
        kernel::moments_of_pixels::launch_unchecked(
            &x.client,
            count,
            dim,
            addresses([x]),
            width,
            buffer(x),
            buffer(&of_parts),
            pixels,
            vectors,
            abreast,
            chunks,
            cubes_of_image,
            b * cubes_of_image,
            groups,
            of_group,
            parts,
            together,
            elem(x.dtype),
        );
    }
    (of_parts, parts)
}

fn norm_act(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, act: bool) -> CubeTensor {
    let [b, c, rows, cols] = dims(&x);
    assert_eq!(dims(&scale), [b, c], "a scale for each channel of each image");
    assert_eq!(dims(&shift), [b, c], "a shift for each channel of each image");
    if x.meta.num_elements() == 0 {
        return x;
    }
    let [scale, shift] = [scale, shift].map(|factor| into_contiguous(wide(factor)));
    if is_pixels(&x) {
        return norm_act_of_pixels(x, scale, shift, act);
    }
    let x = into_contiguous(x);
    let in_place = InPlace::new(&x);
    let width = width([&x], [rows * cols]);
    let vectors = x.meta.num_elements() / width;
    let (count, dim) = cubes(&x.client, vectors);
    // SAFETY: units below the number of vectors read one vector and the factors of its plane, and write that of the
    // result, which is new or lies where `x` does.
    unsafe {
        kernel::norm_act::launch_unchecked(
            &x.client,
            count,
            dim,
            addresses([&x]),
            width,
            buffer(&x),
            buffer(&scale),
            buffer(&shift),
            in_place.buffer(),
            vectors,
            rows * cols / width,
            act,
            elem(x.dtype),
        );
    }
    in_place.out
}

/// [`norm_act`] of an image whose channels lie together.
fn norm_act_of_pixels(x: CubeTensor, scale: CubeTensor, shift: CubeTensor, act: bool) -> CubeTensor {
    let [_, c, rows, cols] = dims(&x);
    let in_place = InPlace::of_pixels(&x);
    let width = width([&x], [c]);
    let vectors = x.meta.num_elements() / width;
    let (count, dim) = cubes(&x.client, vectors);
    // SAFETY: units below the number of vectors read one vector and the factors of its channels, and write that of the
    // result, which is new or lies where `x` does.
    unsafe {
        kernel::norm_act_of_pixels::launch_unchecked(
            &x.client,
            count,
            dim,
            addresses([&x]),
            width,
            buffer(&x),
            buffer(&scale),
            buffer(&shift),
            in_place.buffer(),
            vectors,
            c / width,
            c / width * rows * cols,
            act,
            elem(x.dtype),
        );
    }
    in_place.out
}

/// The kernels. CubeCL's prelude has names that Burn has, too.
mod kernel {
    use cubecl::prelude::*;

    use super::{OF_UNIT, PART, PIXELS, RECORD, STEP};
    use crate::activation::Activation;
    use crate::activation::cube::kernel::apply;
    use crate::cube::UNITS;
    use crate::cube::reduce::{Plan, row_sum};

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn norm_act<F: Float, N: Size>(
        x: &[Vector<F, N>],
        scale: &[f32],
        shift: &[f32],
        out: &mut [Vector<F, N>],
        vectors: usize,
        vectors_of_plane: usize,
        #[comptime] act: bool,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let plane = ABSOLUTE_POS / vectors_of_plane;
        let x = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        let mut y = fma(x, Vector::new(scale[plane]), Vector::new(shift[plane]));
        if act {
            y = apply(y, Activation::Silu);
        }
        out[ABSOLUTE_POS] = Vector::cast_from(y);
    }

    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn norm_act_of_pixels<F: Float, N: Size>(
        x: &[Vector<F, N>],
        scale: &[f32],
        shift: &[f32],
        out: &mut [Vector<F, N>],
        vectors: usize,
        vectors_of_pixel: usize,
        vectors_of_image: usize,
        #[comptime] act: bool,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= vectors {
            terminate!();
        }
        let image = ABSOLUTE_POS / vectors_of_image;
        let first = (image * vectors_of_pixel + ABSOLUTE_POS % vectors_of_pixel) * N::value();
        let mut factor = Vector::<f32, N>::new(0.0f32);
        let mut summand = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for e in 0..N::value() {
            factor.insert(e, scale[first + e]);
            summand.insert(e, shift[first + e]);
        }
        let mut y = fma(Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]), factor, summand);
        if act {
            y = apply(y, Activation::Silu);
        }
        out[ABSOLUTE_POS] = Vector::cast_from(y);
    }

    /// The record of each part of an image whose channels lie together. All numbers are taken as differences from one
    /// number of the image, so that a large mean costs no digits.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn moments_of_pixels<F: Float, N: Size>(
        x: &[Vector<F, N>],
        of_parts: &mut [f32],
        pixels: usize,
        vectors: usize,
        abreast: usize,
        chunks: usize,
        cubes_of_image: usize,
        cubes: usize,
        groups: usize,
        of_group: usize,
        parts: usize,
        #[comptime] together: usize,
        #[define(F)] _type: ElemType,
    ) {
        let lane = UNIT_POS as usize % vectors;
        let row = UNIT_POS as usize / vectors;
        if CUBE_POS >= cubes || row >= abreast {
            terminate!();
        }
        let image = CUBE_POS / cubes_of_image;
        let block = CUBE_POS % cubes_of_image;
        let start = image * pixels * vectors + lane;
        let width = N::value();
        let origin = Vector::<f32, N>::cast_from(x[start]);
        let mut pivot = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for e in 0..width {
            pivot.insert(e, origin.extract(comptime![e / together * together]));
        }

        let mut count = 0.0f32;
        let mut mean = Vector::<f32, N>::new(0.0f32);
        let mut deviation = Vector::<f32, N>::new(0.0f32);
        for chunk in 0..chunks {
            let first = (block * chunks + chunk) * PIXELS * abreast + row;
            if first < pixels {
                let mut kept = Array::<Vector<f32, N>>::new(PIXELS);
                let mut sum = Vector::<f32, N>::new(0.0f32);
                let mut here = 0.0f32;
                #[unroll]
                for i in 0..PIXELS {
                    let pixel = first + i * abreast;
                    let mut value = Vector::<f32, N>::new(0.0f32);
                    if pixel < pixels {
                        value = Vector::<f32, N>::cast_from(x[start + pixel * vectors]) - pivot;
                        here += 1.0f32;
                    }
                    sum += value;
                    kept[i] = value;
                }
                let of_chunk = sum / Vector::new(here);
                let mut squares = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for i in 0..PIXELS {
                    if first + i * abreast < pixels {
                        let apart = kept[i] - of_chunk;
                        squares = fma(apart, apart, squares);
                    }
                }
                let total = count + here;
                let apart = of_chunk - mean;
                mean = fma(apart, Vector::new(here / total), mean);
                deviation = deviation + squares + apart * apart * Vector::new(count * here / total);
                count = total;
            }
        }

        // The channels of a vector that belong to one group have as many elements each.
        #[unroll]
        for share in 0..comptime![width / together] {
            let first = comptime![share * together];
            let mut sum = 0.0f32;
            #[unroll]
            for e in 0..together {
                sum += mean.extract(comptime![first + e]);
            }
            let joint = sum / f32::cast_from(together);
            let mut squares = 0.0f32;
            #[unroll]
            for e in 0..together {
                let apart = mean.extract(comptime![first + e]) - joint;
                squares += deviation.extract(comptime![first + e]) + count * apart * apart;
            }
            let channel = lane * width + first;
            let group = image * groups + channel / of_group;
            let shares = of_group / together;
            let part = (block * abreast + row) * shares + channel % of_group / together;
            let at = (group * parts + part) * RECORD;
            of_parts[at] = pivot.extract(first);
            of_parts[at + 1] = joint;
            of_parts[at + 2] = squares;
            of_parts[at + 3] = count * f32::cast_from(together);
        }
    }

    /// The record of each part.
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn moments_of_parts<F: Float, N: Size>(
        x: &[Vector<F, N>],
        of_parts: &mut [f32],
        count: usize,
        parts: usize,
        all_parts: usize,
        #[comptime] plan: Plan,
        #[define(F)] _type: ElemType,
    ) {
        // Cubes beyond the last part repeat it.
        let part = min(CUBE_POS, all_parts - 1);
        let first = part % parts * PART + UNIT_POS as usize * STEP;
        let start = part / parts * count;
        let width = N::value();
        let loads = comptime![STEP / width];
        let steps = comptime![OF_UNIT / STEP];
        let mut kept = Array::<Vector<f32, N>>::new(comptime![OF_UNIT / width]);
        let mut sum = 0.0f32;
        #[unroll]
        for step in 0..steps {
            #[unroll]
            for load in 0..loads {
                let at = first + comptime![step * UNITS * STEP + load * width];
                let mut value = Vector::<f32, N>::new(0.0f32);
                if at < count {
                    value = Vector::cast_from(x[(start + at) / width]);
                }
                kept[step * loads + load] = value;
                #[unroll]
                for e in 0..width {
                    sum += value.extract(e);
                }
            }
        }
        let elements = f32::cast_from(min(count - part % parts * PART, PART));
        let mean = row_sum::<Const<1>>(Vector::new(sum), plan).extract(0usize) / elements;

        let mut deviations = 0.0f32;
        let mut squares = 0.0f32;
        #[unroll]
        for step in 0..steps {
            #[unroll]
            for load in 0..loads {
                let at = first + comptime![step * UNITS * STEP + load * width];
                if at < count {
                    let value = kept[step * loads + load] - Vector::new(mean);
                    #[unroll]
                    for e in 0..width {
                        let value = value.extract(e);
                        deviations += value;
                        squares = fma(value, value, squares);
                    }
                }
            }
        }
        let mut sums = Vector::<f32, Const<2>>::new(deviations);
        sums.insert(1usize, squares);
        let sums = row_sum::<Const<2>>(sums, plan);
        if UNIT_POS == 0 {
            let rest = sums.extract(0usize) / elements;
            of_parts[part * RECORD] = mean;
            of_parts[part * RECORD + 1] = rest;
            of_parts[part * RECORD + 2] = max(sums.extract(1usize) - sums.extract(0usize) * rest, 0.0f32);
            of_parts[part * RECORD + 3] = elements;
        }
    }

    /// The moments of groups from those of their parts (Chan, Golub and LeVeque).
    #[cube(launch_unchecked, address_type = "dynamic")]
    pub(super) fn merge_parts(
        of_parts: &[f32],
        mean: &mut [f32],
        deviation: &mut [f32],
        count: usize,
        parts: usize,
        groups: usize,
        #[comptime] plan: Plan,
    ) {
        let group = min(CUBE_POS, groups - 1);
        let first = group * parts;
        // Means are added up from that of the first part: their differences are exact where they are close.
        let origin = of_parts[first * RECORD];
        let mut sum = 0.0f32;
        for part in range_stepped(UNIT_POS as usize, parts, UNITS) {
            let at = (first + part) * RECORD;
            sum += of_parts[at + 3] * (of_parts[at] - origin + of_parts[at + 1]);
        }
        let sum = row_sum::<Const<1>>(Vector::new(sum), plan).extract(0usize);
        let from_origin = sum / f32::cast_from(count);
        let mut squares = 0.0f32;
        for part in range_stepped(UNIT_POS as usize, parts, UNITS) {
            let at = (first + part) * RECORD;
            let apart = of_parts[at] - origin + of_parts[at + 1] - from_origin;
            squares += of_parts[at + 2] + of_parts[at + 3] * apart * apart;
        }
        let squares = row_sum::<Const<1>>(Vector::new(squares), plan).extract(0usize);
        if UNIT_POS == 0 {
            mean[group] = origin + from_origin;
            deviation[group] = squares;
        }
    }
}
