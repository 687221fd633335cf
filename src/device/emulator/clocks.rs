//! Who has seen what: vector clocks, for kernels whose threads hand work on by more than `__syncthreads`.
//!
//! An *agent* does accesses: each thread of a cluster is one, and so is whatever works behind its back: the copies that
//! arrive at an mbarrier, the matrix products of a warpgroup, the bulk stores of a thread. An agent's clock goes on when it
//! tells others what it did. For each thread a row says up to which clock it has seen each agent; a second one says up
//! to which clock what ordinary instructions wrote is also visible to the asynchronous ones (`fence.proxy.async`).
//!
//! They begin with the first instruction of a block that needs them, or with the launch if it has clusters.

use std::collections::HashMap;

/// Up to which clock each agent is seen; agents beyond the end are not.
type Seen = Vec<u32>;

fn join(into: &mut Seen, from: &Seen) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (into, from) in into.iter_mut().zip(from) {
        *into = (*into).max(*from);
    }
}

fn at(seen: &Seen, agent: u32) -> u32 {
    seen.get(agent as usize).copied().unwrap_or(0)
}

fn raise(seen: &mut Seen, agent: u32, clock: u32) {
    if seen.len() <= agent as usize {
        seen.resize(agent as usize + 1, 0);
    }
    let at = &mut seen[agent as usize];
    *at = clock.max(*at);
}

/// What one knows.
#[derive(Clone, Default)]
pub(super) struct Row {
    seen: Seen,
    /// Of that, what instructions of the asynchronous proxy see too.
    fenced: Seen,
}

impl Row {
    pub(super) fn join(&mut self, other: &Row) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
    }

    /// What both know.
    pub(super) fn common(&mut self, other: &Row) {
        for (mine, other) in [(&mut self.seen, &other.seen), (&mut self.fenced, &other.fenced)] {
            mine.truncate(other.len());
            mine.iter_mut().zip(other).for_each(|(mine, other)| *mine = (*mine).min(*other));
        }
    }

    /// Whether it covers what an agent did at a clock.
    pub(super) fn has_seen(&self, agent: u32, clock: u32) -> bool {
        clock < at(&self.seen, agent)
    }

    /// Whether asynchronous instructions see it too.
    pub(super) fn has_fenced(&self, agent: u32, clock: u32) -> bool {
        clock < at(&self.fenced, agent)
    }

    /// All that an agent did up to a clock is known.
    pub(super) fn see(&mut self, agent: u32, clock: u32) {
        raise(&mut self.seen, agent, clock + 1);
        raise(&mut self.fenced, agent, clock + 1);
    }
}

/// What works behind a thread's back.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Behind {
    /// Copies that arrive at the mbarrier at this address.
    Barrier(usize),
    /// Matrix products of a block's warpgroup.
    Products(u32, u32),
    /// Bulk stores of a block's thread.
    Stores(u32, u32),
}

/// The clocks of a cluster.
pub(super) struct Clocks {
    /// Threads of a block.
    threads: u32,
    rows: Vec<Row>,
    time: Vec<u32>,
    behind: HashMap<Behind, u32>,
    /// Sets of readers, each made once: the agents with their clocks.
    sets: Vec<Vec<(u32, u32)>>,
    /// From a set and one reader more to the set of all.
    more: HashMap<(u32, u32, u32), u32>,
}

impl Clocks {
    pub(super) fn new(blocks: u32, threads: u32) -> Clocks {
        let all = (blocks * threads) as usize;
        Clocks {
            threads,
            rows: vec![Row::default(); all],
            time: vec![1; all],
            behind: HashMap::new(),
            sets: vec![vec![]],
            more: HashMap::new(),
        }
    }

    /// The agent that a thread is.
    pub(super) fn thread(&self, rank: u32, linear: u32) -> u32 {
        rank * self.threads + linear
    }

    /// The agent of what works behind threads' backs.
    pub(super) fn behind(&mut self, what: Behind) -> u32 {
        let next = (self.rows.len() + self.behind.len()) as u32;
        *self.behind.entry(what).or_insert(next)
    }

    pub(super) fn now(&self, thread: u32) -> u32 {
        self.time[thread as usize]
    }

    pub(super) fn row(&self, thread: u32) -> &Row {
        &self.rows[thread as usize]
    }

    /// Whether `thread` has seen what an agent did at a clock.
    pub(super) fn ordered(&self, thread: u32, agent: u32, clock: u32) -> bool {
        agent == thread || self.rows[thread as usize].has_seen(agent, clock)
    }

    /// What a thread tells others from here on: all that it has seen and done.
    pub(super) fn release(&mut self, thread: u32, to: &mut Row) {
        let now = self.time[thread as usize];
        raise(&mut self.rows[thread as usize].seen, thread, now + 1);
        self.time[thread as usize] += 1;
        to.join(&self.rows[thread as usize]);
    }

    pub(super) fn acquire(&mut self, thread: u32, from: &Row) {
        self.rows[thread as usize].join(from);
    }

    /// A thread learns what an agent did up to a clock.
    pub(super) fn see(&mut self, thread: u32, agent: u32, clock: u32) {
        self.rows[thread as usize].see(agent, clock);
    }

    /// `fence.proxy.async`: what the thread knows is visible to asynchronous instructions.
    pub(super) fn fence(&mut self, thread: u32) {
        let now = self.time[thread as usize];
        let row = &mut self.rows[thread as usize];
        raise(&mut row.seen, thread, now + 1);
        let Row { seen, fenced } = row;
        join(fenced, seen);
        self.time[thread as usize] += 1;
    }

    /// These threads of a block have met: each knows what any of them did.
    pub(super) fn meet(&mut self, rank: u32, members: impl Iterator<Item = u32> + Clone) {
        let mut all = Row::default();
        for linear in members.clone() {
            self.release(rank * self.threads + linear, &mut all);
        }
        for linear in members {
            self.rows[(rank * self.threads + linear) as usize].clone_from(&all);
        }
    }

    /// What all threads of a block know together.
    pub(super) fn of_block(&self, rank: u32) -> Row {
        let mut all = Row::default();
        for linear in 0..self.threads {
            let agent = rank * self.threads + linear;
            all.join(&self.rows[agent as usize]);
            raise(&mut all.seen, agent, self.time[agent as usize] + 1);
        }
        all
    }

    /// The set with one reader more.
    pub(super) fn with(&mut self, set: u32, agent: u32, clock: u32) -> u32 {
        if let Some(known) = self.more.get(&(set, agent, clock)) {
            return *known;
        }
        let mut readers = self.sets[set as usize].clone();
        match readers.iter_mut().find(|r| r.0 == agent) {
            Some(reader) if reader.1 >= clock => return set,
            Some(reader) => reader.1 = clock,
            None => readers.push((agent, clock)),
        }
        self.sets.push(readers);
        let made = self.sets.len() as u32 - 1;
        self.more.insert((set, agent, clock), made);
        made
    }

    /// The readers of a set, with their clocks.
    pub(super) fn set(&self, set: u32) -> impl Iterator<Item = (u32, u32)> {
        self.sets[set as usize].iter().copied()
    }
}
