//! Sums over rows that several units share.

use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::prelude::*;

use super::UNITS;

/// How the units of a cube share rows: `units` of them, next to each other and a power of two, hold one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Units a row.
    pub(crate) units: usize,
    /// Vectors a row.
    pub(crate) vectors: usize,
    /// Vectors a unit holds, at most.
    pub(crate) each: usize,
    /// Units that exchange numbers without shared memory; 0 if the device has no planes of a fixed size.
    plane: usize,
}

impl Plan {
    /// The largest number of vectors that a unit holds.
    const MOST: usize = 48;

    /// A plan for rows of `vectors` vectors on the device of `client`; none if a row is too long for one cube.
    pub(crate) fn new(client: &Client, vectors: usize) -> Option<Self> {
        let plane = plane(client);
        // Few vectors a unit, of these plans one that leaves few units idle, of these the one with most units.
        let plan = |units: usize| Self { units, vectors, each: vectors.div_ceil(units), plane };
        let least = vectors.next_power_of_two().min(8);
        let plans = (0..=UNITS.ilog2()).map(|log| plan(1 << log)).filter(|plan| plan.units >= least);
        plans
            .filter(|plan| plan.each <= Self::MOST)
            .min_by_key(|plan| (plan.each.div_ceil(8), plan.each * plan.units - vectors, UNITS - plan.units))
    }

    /// A plan for one row a cube, whose vectors the kernel counts itself.
    pub(crate) fn whole(client: &Client) -> Self {
        Self { units: UNITS, vectors: 0, each: 0, plane: plane(client) }
    }

    /// Rows of a cube.
    pub(crate) fn rows(&self) -> usize {
        UNITS / self.units
    }
}

/// Units of a plane, if the device has planes of one size; else 0.
pub(crate) fn plane(client: &Client) -> usize {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let is_fixed = hardware.plane_size_min == hardware.plane_size_max;
    if properties.features.plane.contains(Plane::Ops) && is_fixed {
        hardware.plane_size_max as usize
    } else {
        0
    }
}

/// Whether `at` is below `total`, which is not asked where it `always` is.
#[cube]
pub(crate) fn is_below(at: usize, total: usize, #[comptime] always: bool) -> bool {
    if always { true.runtime() } else { at < total }
}

/// The sum of `value` over the units of a row, for each of them. All units of the cube take part.
#[cube]
pub(crate) fn row_sum<K: Size>(value: Vector<f32, K>, #[comptime] plan: Plan) -> Vector<f32, K> {
    let mut sum = value;
    if comptime![plan.plane > 0] {
        let lanes = comptime![plan.units.min(plan.plane)];
        #[unroll]
        for step in 0..comptime![lanes.ilog2()] {
            let other = plane_shuffle_xor(sum, comptime![1u32 << step].runtime());
            sum += other;
        }
        if comptime![plan.units > plan.plane] {
            let planes = comptime![plan.units / plan.plane];
            let mut parts = Shared::<[Vector<f32, K>]>::new_slice(comptime![UNITS / plan.plane]);
            if UNIT_POS_PLANE == 0 {
                parts[UNIT_POS as usize / plan.plane] = sum;
            }
            sync_cube();
            let first = UNIT_POS as usize / plan.units * planes;
            sum = parts[first];
            #[unroll]
            for i in 1..planes {
                sum += parts[first + i];
            }
        }
    } else {
        let mut parts = Shared::<[Vector<f32, K>]>::new_slice(UNITS);
        let at = UNIT_POS as usize;
        parts[at] = sum;
        #[unroll]
        for step in 0..comptime![plan.units.ilog2() as usize] {
            let half = comptime![plan.units >> (step + 1)];
            sync_cube();
            if at % plan.units < half {
                let other = parts[at + half];
                parts[at] += other;
            }
        }
        sync_cube();
        sum = parts[at / plan.units * plan.units];
    }
    sum
}
