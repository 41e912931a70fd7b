//! Python's `random.Random(seed).shuffle`, because SparseML chooses among equal scores with it: the Mersenne Twister
//! MT19937 (Matsumoto and Nishimura, 1998), seeded and drawn from as CPython does.

const N: usize = 624;
const M: usize = 397;

pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u32) -> PythonRandom {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = spread(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        // The seed is an array of one word, so that its index stays 0.
        let mut i = 1;
        for _ in 0..N {
            state[i] = (state[i] ^ spread(state[i - 1], 1_664_525)).wrapping_add(seed);
            i = following(&mut state, i);
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ spread(state[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i = following(&mut state, i);
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform below `n`, which is 1 or more: as many bits as `n` has, drawn until they are below it.
    fn below(&mut self, n: u32) -> u32 {
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let drawn = self.next_u32() >> (u32::BITS - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `shuffle`: from the last place down, each swaps with one at or before it.
    pub fn shuffle(&mut self, list: &mut [u32]) {
        for i in (1..list.len()).rev() {
            let j = self.below(i as u32 + 1);
            list.swap(i, j as usize);
        }
    }
}

fn spread(word: u32, by: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(by)
}

fn following(state: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3 prints for `r = random.Random(42); [r.getrandbits(32) for _ in range(2000)]`.
    #[test]
    fn words_are_pythons() {
        let mut random = PythonRandom::new(42);
        let words: Vec<u32> = (0..2000).map(|_| random.next_u32()).collect();
        assert_eq!(words[..4], [2_746_317_213, 478_163_327, 107_420_369, 3_184_935_163]);
        assert_eq!(words[1998..], [3_674_130_601, 1_557_724_698]);
    }

    /// What Python 3 makes of `list(range(n))` with `random.Random(42).shuffle`.
    #[test]
    fn shuffles_are_pythons() {
        let shuffled = |n: u32| {
            let mut list: Vec<u32> = (0..n).collect();
            PythonRandom::new(42).shuffle(&mut list);
            list
        };
        assert_eq!(shuffled(1), [0]);
        assert_eq!(shuffled(2), [1, 0]);
        assert_eq!(shuffled(5), [3, 1, 2, 4, 0]);
        assert_eq!(shuffled(10), [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
        let thousand = shuffled(1000);
        assert_eq!(thousand[..8], [776, 507, 895, 922, 33, 483, 85, 750]);
        assert_eq!(thousand[996..], [759, 25, 114, 654]);
        let many = shuffled(70_000);
        assert_eq!((&many[..3], &many[69_997..]), (&[21209, 63787, 69973][..], &[36048, 3278, 14592][..]));
    }
}
