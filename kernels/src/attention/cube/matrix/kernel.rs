//! The kernel of attention by matrix instructions.
//!
//! Of a matrix of accumulators, unit `4 g + t` of a plane holds the columns `2 t` and `2 t + 1` of the rows `g` and
//! `g + 8`. Two such matrices side by side, rounded to 16 bits, are a left factor of the next product.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::{COLUMNS, KEYS, PLANE, PRODUCTS, ROWS, Tile, WIDTH};
use crate::attention::cube::inputs::Strides;
use crate::cube::reduce::is_below;

/// Two neighbouring elements: a register of 16-bit numbers, or half of a unit's accumulators.
type Two<F> = Vector<F, Const<2>>;

/// Blocks of columns of a tile's scores.
const BLOCKS: usize = KEYS / COLUMNS;

/// See [`attention_lse`](crate::attention::attention_lse). `nothing` is -inf.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn attend<F: Float, P: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    bias: ComptimeOption<&[P]>,
    out: &mut [Two<F>],
    lse: &mut [f32],
    of_q: Strides,
    of_k: Strides,
    of_v: Strides,
    of_bias: Strides,
    of_key: usize,
    cubes: usize,
    tiles: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    scale: f32,
    nothing: f32,
    #[comptime] tile: Tile,
    #[define(F, P)] _types: [ElemType; 2],
) {
    // Cubes beyond the last one repeat it.
    let cube = min(CUBE_POS, cubes - 1);
    let image = cube / tiles / heads;
    let head = cube / tiles % heads;
    let first = cube % tiles * comptime![tile.queries()];
    let plane = UNIT_POS as usize / PLANE;
    let lane = UNIT_POS as usize % PLANE;
    let (group, pair) = (lane / 4, lane % 4);
    let pitch = comptime![tile.pitch()];
    let blocks_of_head = comptime![tile.features.div_ceil(COLUMNS)];
    let products_of_head = comptime![tile.padded() / PRODUCTS];
    let k_start = image * of_k.of_image + head * of_k.of_head;
    let v_start = image * of_v.of_image + head * of_v.of_head;
    let bias_start = image * of_bias.of_image + head * of_bias.of_head;
    let multiply = MmaDefinition::<F, F, f32>::new(ROWS, COLUMNS, PRODUCTS);

    let mut shared =
        Shared::<[Vector<F, N>]>::new_aligned_slice(comptime![tile.rows() * tile.pitch()], 16usize);

    // The queries of a plane stay in its registers.
    let vectors = comptime![tile.padded() / WIDTH];
    let q_start = image * of_q.of_image + head * of_q.of_head;
    #[unroll]
    for step in 0..comptime![(tile.queries() * vectors).div_ceil(tile.units())] {
        let at = step * comptime![tile.units()] + UNIT_POS as usize;
        if at < comptime![tile.queries() * vectors] {
            let (row, vector) = (at / vectors, at % vectors);
            let value = load::<F, N>(q, q_start, of_q.of_row, first + row, queries, vector, tile);
            shared[row * pitch + vector] = value;
        }
    }
    sync_cube();
    let mut of_queries = Array::<Two<F>>::new(comptime![4 * products_of_head]);
    #[unroll]
    for i in 0..products_of_head {
        let at = (plane * ROWS + lane % 16) * pitch + 2 * i + lane / 16;
        let four = multiply.load_matrix::<Vector<F, N>, Const<2>>(
            &shared[at..at + 1],
            MatrixIdent::A,
            4usize,
            false,
        );
        #[unroll]
        for e in 0..4usize {
            of_queries[4 * i + e] = four[e];
        }
    }

    let mut results = Array::<Two<f32>>::new(comptime![2 * blocks_of_head.next_multiple_of(2)]);
    #[unroll]
    for i in 0..comptime![2 * blocks_of_head.next_multiple_of(2)] {
        results[i] = Two::new(0.0f32);
    }
    let mut largest = Array::<f32>::new(2usize);
    let mut sums = Array::<f32>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        largest[i] = f32::MIN;
        sums[i] = 0.0f32;
    }

    let loads = comptime![tile.loads()];
    let mut next_keys = Array::<Vector<F, N>>::new(loads);
    let mut next_values = Array::<Vector<F, N>>::new(loads);
    fetch::<F, N>(k, &mut next_keys, k_start, of_k.of_row, 0usize.runtime(), keys, tile);
    fetch::<F, N>(v, &mut next_values, v_start, of_v.of_row, 0usize.runtime(), keys, tile);

    let mut first_key = 0usize.runtime();
    while first_key < keys {
        sync_cube();
        store::<F, N>(&next_keys, &mut shared, 0usize, tile);
        store::<F, N>(&next_values, &mut shared, comptime![KEYS * tile.pitch()], tile);
        sync_cube();
        // On their way while this tile is worked on.
        fetch::<F, N>(k, &mut next_keys, k_start, of_k.of_row, first_key + KEYS, keys, tile);
        fetch::<F, N>(v, &mut next_values, v_start, of_v.of_row, first_key + KEYS, keys, tile);

        let mut scores = Array::<Two<f32>>::new(comptime![2 * BLOCKS]);
        #[unroll]
        for i in 0..comptime![2 * BLOCKS] {
            scores[i] = Two::new(0.0f32);
        }
        #[unroll]
        for i in 0..products_of_head {
            let mut left = Array::<Two<F>>::new(4usize);
            #[unroll]
            for e in 0..4usize {
                left[e] = of_queries[4 * i + e];
            }
            // Two blocks of eight keys, each with two halves of the products.
            #[unroll]
            for j in 0..comptime![BLOCKS / 2] {
                let row = j * 16 + lane / 16 * 8 + lane % 8;
                let at = row * pitch + 2 * i + lane / 8 % 2;
                let right = multiply.load_matrix::<Vector<F, N>, Const<2>>(
                    &shared[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    false,
                );
                add_products::<F>(&left, &right, &mut scores, comptime![4 * j]);
            }
        }

        #[unroll]
        for half in 0..2usize {
            let query = min(first + plane * ROWS + half * 8 + group, queries - 1);
            #[unroll]
            for j in 0..BLOCKS {
                let mut two = scores[2 * j + half] * Two::new(scale);
                let own_key = first_key + j * COLUMNS + 2 * pair;
                #[unroll]
                for e in 0..2usize {
                    let mut score = two.extract(e);
                    #[comptime]
                    if let ComptimeOption::Some(bias) = bias {
                        let at = bias_start + query * of_bias.of_row + min(own_key + e, keys - 1) * of_key;
                        score += f32::cast_from(bias[at]);
                    }
                    two.insert(e, score);
                }
                scores[2 * j + half] = two;
            }
            // Keys beyond the last are in the last tile alone.
            if first_key + KEYS > keys {
                #[unroll]
                for j in 0..BLOCKS {
                    let mut two = scores[2 * j + half];
                    let own_key = first_key + j * COLUMNS + 2 * pair;
                    #[unroll]
                    for e in 0..2usize {
                        two.insert(e, select(own_key + e < keys, two.extract(e), nothing));
                    }
                    scores[2 * j + half] = two;
                }
            }
            let mut top = largest[half];
            #[unroll]
            for j in 0..BLOCKS {
                let two = scores[2 * j + half];
                top = max(top, max(two.extract(0usize), two.extract(1usize)));
            }
            // The four units of a row.
            top = max(top, plane_shuffle_xor(top, 1u32));
            top = max(top, plane_shuffle_xor(top, 2u32));
            let factor = exponential(largest[half] - top);
            largest[half] = top;
            let mut sum = sums[half] * factor;
            #[unroll]
            for j in 0..BLOCKS {
                let mut two = scores[2 * j + half];
                #[unroll]
                for e in 0..2usize {
                    let weight = exponential(two.extract(e) - top);
                    sum += weight;
                    two.insert(e, weight);
                }
                scores[2 * j + half] = two;
            }
            sums[half] = sum;
            #[unroll]
            for j in 0..blocks_of_head {
                results[2 * j + half] *= Two::new(factor);
            }
        }

        #[unroll]
        for i in 0..comptime![KEYS / PRODUCTS] {
            let mut left = Array::<Two<F>>::new(4usize);
            #[unroll]
            for e in 0..4usize {
                left[e] = Two::cast_from(scores[4 * i + e]);
            }
            // Two blocks of eight features, each with two halves of the products.
            #[unroll]
            for j in 0..comptime![blocks_of_head.div_ceil(2)] {
                let row = KEYS + i * PRODUCTS + lane % 16;
                let at = row * pitch + 2 * j + lane / 16;
                let right = multiply.load_matrix::<Vector<F, N>, Const<2>>(
                    &shared[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    true,
                );
                add_products::<F>(&left, &right, &mut results, comptime![4 * j]);
            }
        }
        first_key += KEYS;
    }

    #[unroll]
    for half in 0..2usize {
        let mut sum = sums[half];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        // A query without keys has a sum of 0, and results of 0, which are divided by 1.
        let factor = 1.0f32 / select(sum == 0.0f32, 1.0f32, sum);
        let query = first + plane * ROWS + half * 8 + group;
        if query < queries {
            let at = (image * queries + query) * heads + head;
            if pair == 0 {
                lse[at] = select(sum == 0.0f32, nothing, largest[half] + sum.ln());
            }
            #[unroll]
            for j in 0..blocks_of_head {
                let result = results[2 * j + half] * Two::new(factor);
                out[at * comptime![tile.features / 2] + j * comptime![COLUMNS / 2] + pair] =
                    Two::cast_from(result);
            }
        }
    }
}

/// `exp(x)`, right to a few units in the last place, and exactly 0 for -inf.
#[cube]
fn exponential(x: f32) -> f32 {
    let power = x * f32::new(std::f32::consts::LOG2_E);
    let result: f32;
    gpu_asm!(
        "ex2.approx.ftz.f32 {result}, {power};",
        power = in(_) power,
        result = out(_) result,
        options(nomem),
    );
    result
}

/// Adds the products of `left` with the two blocks of `right` to two neighbouring blocks of sums.
#[cube]
fn add_products<F: Float>(
    left: &Array<Two<F>>,
    right: &Array<Two<F>>,
    sums: &mut Array<Two<f32>>,
    #[comptime] first: usize,
) {
    let multiply = MmaDefinition::<F, F, f32>::new(ROWS, COLUMNS, PRODUCTS);
    #[unroll]
    for block in 0..2usize {
        let mut of_block = Array::<Two<F>>::new(2usize);
        let mut sum = Array::<Two<f32>>::new(2usize);
        #[unroll]
        for e in 0..2usize {
            of_block[e] = right[2 * block + e];
            sum[e] = sums[first + 2 * block + e];
        }
        let sum = multiply.execute(left, &of_block, &sum);
        #[unroll]
        for e in 0..2usize {
            sums[first + 2 * block + e] = sum[e];
        }
    }
}

/// Eight features of a row; zeros, if there is no such row or feature.
#[cube]
fn load<F: Float, N: Size>(
    x: &[Vector<F, N>],
    start: usize,
    of_row: usize,
    row: usize,
    rows: usize,
    vector: usize,
    #[comptime] tile: Tile,
) -> Vector<F, N> {
    let mut value = Vector::<F, N>::new(F::new(0.0f32));
    if row < rows {
        let vectors = comptime![tile.features / WIDTH];
        if is_below(vector, vectors, comptime![tile.features == tile.padded()]) {
            value = x[start + row * of_row + vector];
        }
    }
    value
}

/// Loads a unit's part of a tile of keys or values.
#[cube]
fn fetch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    to: &mut Array<Vector<F, N>>,
    start: usize,
    of_row: usize,
    first: usize,
    rows: usize,
    #[comptime] tile: Tile,
) {
    let vectors = comptime![tile.padded() / WIDTH];
    #[unroll]
    for i in 0..comptime![tile.loads()] {
        let at = i * comptime![tile.units()] + UNIT_POS as usize;
        to[i] = load::<F, N>(x, start, of_row, first + at / vectors, rows, at % vectors, tile);
    }
}

/// Stores what [`fetch`] loaded.
#[cube]
fn store<F: Float, N: Size>(
    from: &Array<Vector<F, N>>,
    shared: &mut Shared<[Vector<F, N>]>,
    #[comptime] first: usize,
    #[comptime] tile: Tile,
) {
    let vectors = comptime![tile.padded() / WIDTH];
    #[unroll]
    for i in 0..comptime![tile.loads()] {
        let at = i * comptime![tile.units()] + UNIT_POS as usize;
        let to = first + at / vectors * comptime![tile.pitch()] + at % vectors;
        let total = comptime![KEYS * vectors];
        if is_below(at, total, comptime![(i + 1) * tile.units() <= total]) {
            shared[to] = from[i];
        }
    }
}
