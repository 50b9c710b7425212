//! MT19937, the engine of PyTorch's CPU generator.

/// The number of state words.
const N: usize = 624;
/// The distance to the word that is mixed in.
const M: usize = 397;

/// MT19937 of Matsumoto and Nishimura, seeded with one word.
///
/// # Source
/// M. Matsumoto, T. Nishimura: "Mersenne Twister: A 623-dimensionally equidistributed uniform pseudorandom number
/// generator" (1998), with the seeding of 2002.
#[derive(Clone, Debug)]
pub(super) struct MersenneTwister {
    state: [u32; N],
    /// The index of the next word to return; `N` when all have been used.
    next: usize,
}

impl MersenneTwister {
    pub(super) fn from_seed(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// Replaces all state words at once.
    fn twist(&mut self) {
        for i in 0..N {
            let mixed = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ mixed >> 1 ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard specifies this number ([rand.predef]) as a check of implementations.
    #[test]
    fn the_ten_thousandth_word_is_that_of_the_standard() {
        let mut engine = MersenneTwister::from_seed(5489);
        let word = (0..10_000).map(|_| engine.next_u32()).last();
        assert_eq!(word, Some(4_123_659_995));
    }
}
