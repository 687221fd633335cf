//! Warp collectives: the lanes of a mask meet, exchange values and part.
//!
//! A meeting is an object of its own. It is open while lanes are missing, and after that stays untouched until its last
//! lane has taken its value; so masks may change, overlap, and be used again at once by lanes that are ahead.

use super::matrices;
use super::report::Site;

pub(super) const SYNCWARP: u32 = 1;
const BALLOT: u32 = 6;
const ANY: u32 = 7;
const ALL: u32 = 8;
const LDMATRIX: u32 = 9;
const MMA_F16: u32 = 10;
const MMA_BF16: u32 = 11;
/// What a lane reads from one that does not take part: NaN.
const POISON: u64 = !0;

pub(super) fn name(op: u32) -> &'static str {
    match op {
        1 => "__syncwarp",
        2 => "__shfl_sync",
        3 => "__shfl_xor_sync",
        4 => "__shfl_down_sync",
        5 => "__shfl_up_sync",
        6 => "__ballot_sync",
        7 => "__any_sync",
        8 => "__all_sync",
        LDMATRIX => "ldmatrix",
        MMA_F16 | MMA_BF16 => "mma.sync",
        _ => "a warp collective",
    }
}

#[derive(Default)]
pub(super) struct Warp {
    /// Lanes that the block has.
    pub(super) exist: u32,
    /// Lanes that have left the kernel.
    pub(super) exited: u32,
    /// Meetings that wait for lanes.
    pub(super) open: Vec<u32>,
}

pub(super) struct Meeting {
    pub(super) warp: u32,
    /// As the lanes wrote it.
    pub(super) mask: u32,
    /// The lanes of it that exist.
    pub(super) named: u32,
    pub(super) arrived: u32,
    left: u32,
    pub(super) op: u32,
    pub(super) site: Site,
    values: [u64; 32],
}

#[derive(Default)]
pub(super) struct Meetings {
    all: Vec<Meeting>,
    free: Vec<u32>,
}

/// Why lanes cannot meet.
pub(super) enum Problem {
    /// The caller is not in its own mask.
    NotNamed,
    /// These lanes of the mask have left the kernel.
    Exited(u32),
    /// Another lane of the mask came to this collective, here.
    Other(u32, Site, u32),
}

impl Meetings {
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.free.clear();
    }

    pub(super) fn get(&self, id: u32) -> &Meeting {
        &self.all[id as usize]
    }

    /// A lane arrives; with the last one, what they do together is done. Returns its meeting, and whether it was the last to come.
    #[inline]
    pub(super) fn arrive(
        &mut self,
        (index, warp): (u32, &mut Warp),
        (lane, mask, op, value): (u32, u32, u32, u64),
        site: Site,
    ) -> Result<(u32, bool), Problem> {
        let named = mask & warp.exist;
        if named >> lane & 1 == 0 {
            return Err(Problem::NotNamed);
        }
        if named & warp.exited != 0 {
            return Err(Problem::Exited(named & warp.exited));
        }
        let known = warp.open.iter().position(|id| self.all[*id as usize].mask == mask);
        let id = match known {
            Some(at) => warp.open[at],
            None => {
                let id = self.open(Meeting {
                    warp: index,
                    mask,
                    named,
                    arrived: 0,
                    left: 0,
                    op,
                    site,
                    values: [POISON; 32],
                });
                warp.open.push(id);
                id
            }
        };
        let meeting = &mut self.all[id as usize];
        if meeting.op != op {
            return Err(Problem::Other(meeting.op, meeting.site, meeting.arrived.trailing_zeros()));
        }
        meeting.values[lane as usize] = value;
        meeting.arrived |= 1 << lane;
        let complete = meeting.arrived == named;
        if complete {
            // SAFETY: `cuda.h` makes the values of these, pointers to variables of lanes that wait in the call.
            unsafe {
                match op {
                    LDMATRIX => matrices::load(&meeting.values),
                    MMA_F16 => matrices::multiply(&meeting.values, matrices::f16),
                    MMA_BF16 => matrices::multiply(&meeting.values, matrices::bf16),
                    _ => {}
                }
            }
            warp.open.swap_remove(known.unwrap_or(warp.open.len() - 1));
        }
        Ok((id, complete))
    }

    fn open(&mut self, meeting: Meeting) -> u32 {
        if let Some(id) = self.free.pop() {
            self.all[id as usize] = meeting;
            return id;
        }
        self.all.push(meeting);
        self.all.len() as u32 - 1
    }

    /// A lane takes its value and goes; the meeting ends with its last lane.
    #[inline]
    pub(super) fn leave(&mut self, id: u32, lane: u32, source: u32) -> u64 {
        let meeting = &mut self.all[id as usize];
        let value = match meeting.op {
            BALLOT | ANY | ALL => {
                let lanes = (0..32).filter(|l| meeting.arrived >> l & 1 == 1);
                let votes = lanes.fold(0u32, |all, l| all | u32::from(meeting.values[l as usize] != 0) << l);
                match meeting.op {
                    BALLOT => u64::from(votes),
                    ANY => u64::from(votes != 0),
                    _ => u64::from(votes == meeting.named),
                }
            }
            SYNCWARP | LDMATRIX..=MMA_BF16 => 0,
            _ => meeting.values[(source & 31) as usize],
        };
        meeting.left |= 1 << lane;
        if meeting.left == meeting.named {
            self.free.push(id);
        }
        value
    }
}
