//! Chance that is the same on every machine.

/// splitmix64 (Steele, Lea, Flood 2014): a counter, well stirred. Any seed is good, and it needs no crate.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn between(&mut self, least: f64, most: f64) -> f64 {
        // 53 bits are what a f64 holds.
        let part = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        least + (most - least) * part
    }

    /// Below a small bound, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A start byte more often than not by chance: those are what an asker stumbles over.
    pub fn byte(&mut self) -> u8 {
        let [byte, chance, ..] = self.next().to_le_bytes();
        if chance < 64 { 0xDD } else { byte }
    }
}
