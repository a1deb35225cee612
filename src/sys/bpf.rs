//! Classic BPF programs for sockets: what the kernel runs on a packet that begins a connection.
//!
//! They need no privilege, may be replaced at any time, and are checked by the kernel when they are attached. The
//! language is described in the kernel's `Documentation/networking/filter.rst`.

use std::io;

/// Longest program the kernel takes.
const LENGTH_MAX: usize = 4096;

/// Where the client's address stands in a packet: the words of the source, from the start of the network header.
const SOURCE_V4: &[u32] = &[12];
const SOURCE_V6: &[u32] = &[8, 12, 16, 20];

/// Which addresses a socket serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4 only.
    V4,
    /// IPv6, and IPv4 where the socket is a dual-stack one.
    V6,
}

/// A program, ready to be attached to a socket.
#[derive(Debug, Clone)]
pub struct BpfProgram {
    code: Vec<libc::sock_filter>,
}

impl BpfProgram {
    /// For a socket filter: drops what begins a connection, keeps everything else.
    pub fn drop_new_connections() -> Self {
        const FLAGS_BYTE: u32 = 13;
        const SYN: u32 = 0x02;
        const SYN_AND_ACK: u32 = 0x12;
        // The program sees the packet from its TCP header on; RFC 9293 §3.1 has the flags.
        Self {
            code: vec![
                op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, FLAGS_BYTE),
                op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, SYN_AND_ACK),
                branch(libc::BPF_JEQ, SYN, 0, 1),
                return_value(0),
                return_value(u32::MAX),
            ],
        }
    }

    /// For a reuseport group: each connection goes to one entry of `table`, chosen at random.
    ///
    /// # Errors
    /// When the table is empty or has too many different entries for a program.
    pub fn random_choice(table: &[u32]) -> io::Result<Self> {
        let random = u32::from_ne_bytes((libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).to_ne_bytes());
        Self::select_modulo(vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random)], table)
    }

    /// For a reuseport group: each connection goes to the entry of `table` that its client's address is hashed to.
    ///
    /// All of an IPv6 address counts, not only its network: behind one /64 may stand a whole cluster, and all of it
    /// would meet one slot. The price is that a device which changes its temporary address changes its slot too.
    ///
    /// # Errors
    /// When the table is empty or has too many different entries for a program.
    pub fn client_address_hash(family: IpFamily, table: &[u32]) -> io::Result<Self> {
        let (four, six) = (hash(SOURCE_V4), hash(SOURCE_V6));
        let code = match family {
            IpFamily::V4 => four,
            // To a dual-stack socket packets of either version come, and their addresses stand in other places.
            IpFamily::V6 => {
                const VERSION_SHIFT: u32 = 4;
                let jump = |code: &[libc::sock_filter]| u8::try_from(code.len()).map_err(io::Error::other);
                let after = u32::try_from(six.len()).map_err(io::Error::other)?;
                let version = op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, network(0));
                let shift = op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, VERSION_SHIFT);
                let is_four = branch(libc::BPF_JEQ, 4, 0, jump(&four)?.saturating_add(1));
                let done = op(libc::BPF_JMP | libc::BPF_JA, after);
                [version, shift, is_four].into_iter().chain(four).chain([done]).chain(six).collect()
            }
        };
        Self::select_modulo(code, table)
    }

    /// `number`, then: answer with the entry of the table at the number modulo the table's length.
    fn select_modulo(number: Vec<libc::sock_filter>, table: &[u32]) -> io::Result<Self> {
        let len = u32::try_from(table.len()).ok().filter(|len| *len > 0);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut code = number;
        code.push(op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, len));
        let mut runs: Vec<(u32, u32)> = (0..len).zip(table.iter().copied()).collect();
        runs.dedup_by_key(|run| run.1);
        code.extend(search_tree(&runs));
        if code.len() > LENGTH_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many slots for a BPF program"));
        }
        Ok(Self { code })
    }

    /// Hands the program to `attach` in the form of setsockopt(2).
    pub(super) fn with_raw<T>(&self, attach: impl FnOnce(&libc::sock_fprog) -> T) -> io::Result<T> {
        let len = u16::try_from(self.code.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // The kernel only reads it; the type says otherwise.
        Ok(attach(&libc::sock_fprog { len, filter: self.code.as_ptr().cast_mut() }))
    }
}

/// An offset from the start of the network header.
fn network(offset: u32) -> u32 {
    u32::from_ne_bytes(libc::SKF_NET_OFF.to_ne_bytes()).wrapping_add(offset)
}

/// Hashes these words of the network header into the accumulator.
fn hash(words: &[u32]) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    for (nth, word) in words.iter().enumerate() {
        let load = op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, network(*word));
        match nth {
            0 => code.push(load),
            _ => code.extend([op(MISC_TAX, 0), load, op(XOR_X, 0)]),
        }
        code.extend(mix());
    }
    code
}

const MISC_TAX: u32 = libc::BPF_MISC | libc::BPF_TAX;
const XOR_X: u32 = libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X;

#[allow(clippy::cast_possible_truncation, reason = "an operation's code has 16 bits")]
fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn branch(condition: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { jt, jf, ..op(libc::BPF_JMP | condition | libc::BPF_K, k) }
}

fn return_value(value: u32) -> libc::sock_filter {
    op(libc::BPF_RET | libc::BPF_K, value)
}

/// Spreads any difference of the accumulator over all its bits: the finalizer `lowbias32`, whose bias is the least
/// known for two multiplications. Without it, addresses that differ in few bits would share few entries.
fn mix() -> impl Iterator<Item = libc::sock_filter> {
    let shift = |by| [op(MISC_TAX, 0), op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, by), op(XOR_X, 0)];
    let times = |by| op(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, by);
    let first = shift(16).into_iter().chain([times(0x7feb_352d)]);
    first.chain(shift(15)).chain([times(0x846c_a68b)]).chain(shift(16))
}

/// Answers with the second of the last run whose first is not above the accumulator: a search tree.
fn search_tree(runs: &[(u32, u32)]) -> Vec<libc::sock_filter> {
    if let [] | [_] = runs {
        return runs.iter().map(|run| return_value(run.1)).collect();
    }
    let (below, above) = runs.split_at(runs.len() / 2);
    let left = search_tree(below);
    let mut code = match u8::try_from(left.len()) {
        Ok(jump) => vec![branch(libc::BPF_JGE, above[0].0, jump, 0)],
        // A conditional jump reaches 255 operations far, an unconditional one any distance.
        Err(_) => vec![
            branch(libc::BPF_JGE, above[0].0, 0, 1),
            op(libc::BPF_JMP | libc::BPF_JA, u32::try_from(left.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(left);
    code.extend(search_tree(above));
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The byte with which packets of either version begin.
    const FOUR: u32 = 0x45;
    const SIX: u32 = 0x60;

    /// What a program answers when the words it loads are these, in the order of its loads.
    fn run(program: &BpfProgram, loads: &[u32]) -> u32 {
        let (mut a, mut x, mut loads, mut at) = (0_u32, 0_u32, loads.iter(), 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program.code[at];
            at += 1;
            let jump = |condition| usize::from(if condition { jt } else { jf });
            match u32::from(code) {
                code if code & 7 == libc::BPF_LD => a = *loads.next().unwrap(),
                code if code == libc::BPF_JMP | libc::BPF_JGE => at += jump(a >= k),
                code if code == libc::BPF_JMP | libc::BPF_JEQ => at += jump(a == k),
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_ALU | libc::BPF_MOD => a %= k,
                code if code == libc::BPF_ALU | libc::BPF_AND => a &= k,
                code if code == libc::BPF_ALU | libc::BPF_MUL => a = a.wrapping_mul(k),
                code if code == libc::BPF_ALU | libc::BPF_RSH => a >>= k,
                XOR_X => a ^= x,
                MISC_TAX => x = a,
                code if code == libc::BPF_RET => return k,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_number_meets_its_entry_of_the_table(
            table in prop::collection::vec(0_u32..1024, 1..1024),
            number: u32,
        ) {
            let program = BpfProgram::random_choice(&table).unwrap();
            prop_assert_eq!(run(&program, &[number]), table[number as usize % table.len()]);
        }

        #[test]
        fn a_client_always_meets_the_same_entry([a, b, c, d]: [u32; 4], length in 1_u32..1024) {
            let table: Vec<u32> = (0..length).collect();
            let four = run(&BpfProgram::client_address_hash(IpFamily::V4, &table).unwrap(), &[a]);
            let both = BpfProgram::client_address_hash(IpFamily::V6, &table).unwrap();
            let six = run(&both, &[SIX, a, b, c, d]);
            prop_assert!(four < length && six < length);
            prop_assert_eq!(run(&both, &[SIX, a, b, c, d]), six);
            prop_assert_eq!(run(&both, &[FOUR, a]), four, "whatever socket it came to");
        }
    }

    #[test]
    fn only_packets_that_begin_a_connection_are_dropped() {
        let program = BpfProgram::drop_new_connections();
        for (flags, kept) in [(0x02, false), (0xC2, false), (0x12, true), (0x10, true), (0x18, true)] {
            assert_eq!(run(&program, &[flags]) > 0, kept, "{flags:#x}");
        }
    }

    #[test]
    fn neighbours_are_spread_evenly_in_both_families() {
        const ENTRIES: usize = 16;
        const CLIENTS: u32 = 16_000;
        let table: Vec<u32> = (0..16).collect();
        let client = |family, words: &dyn Fn(u32) -> Vec<u32>| {
            let program = BpfProgram::client_address_hash(family, &table).unwrap();
            let mut met = [0_u32; ENTRIES];
            (0..CLIENTS).for_each(|nth| met[run(&program, &words(nth)) as usize] += 1);
            assert!(met.iter().all(|count| (850..1150).contains(count)), "{met:?}");
        };
        client(IpFamily::V4, &|nth| vec![0x0A00_0000 + nth]);
        client(IpFamily::V4, &|nth| vec![nth << 16 | 1]);
        client(IpFamily::V6, &|nth| vec![FOUR, 0x0A00_0000 + nth]);
        client(IpFamily::V6, &|nth| vec![SIX, 0x2001_0DB8, nth, 0, 1]);
        client(IpFamily::V6, &|nth| vec![SIX, 0x2001_0DB8, 0, 0, nth]);
    }

    #[test]
    fn the_largest_fleet_fits_and_more_is_refused() {
        let distinct =
            |count: u32| BpfProgram::client_address_hash(IpFamily::V6, &(0..count).collect::<Vec<_>>());
        assert!(distinct(1024).unwrap().code.len() < 2200);
        assert!(distinct(4096).is_err() && distinct(0).is_err());
    }
}
