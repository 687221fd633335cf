//! The tests of `src/train/checkpoint.rs`: checkpoints cut, changed and half written.

use super::*;
use crate::nn::state::Array;

fn checkpoint(x: f32) -> Checkpoint {
    let entries = StateDict::from([("0.weight".to_string(), Array::f32(&[2], &[x, 1.5]))]);
    Checkpoint {
        model: entries.clone(),
        trained: Some(entries.clone()),
        optimizer: Some(entries),
        position: Position { step: 7, loss_sum: 0.1, ..Position::default() },
    }
}

#[test]
fn a_checkpoint_survives_a_round_trip_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let last = dir.path().join("last");
    assert!(load(&last).unwrap_err().to_string().contains("no such checkpoint"));
    for x in [1.0, 2.0] {
        save(&last, &checkpoint(x)).unwrap();
        assert_eq!(load(&last).unwrap(), checkpoint(x));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_cut_and_every_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let last = dir.path().join("last");
    save(&last, &checkpoint(1.0)).unwrap();
    for name in [MODEL, OPTIMIZER, TRAINED, MANIFEST] {
        let path = last.join(name);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            let e = load(&last).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("remedy"), "{e}");
        }
        if name != MANIFEST {
            for at in 0..whole.len() {
                let mut bad = whole.clone();
                bad[at] ^= 1;
                fs::write(&path, &bad).unwrap();
                assert!(load(&last).unwrap_err().to_string().contains("sha256"));
            }
        }
        fs::remove_file(&path).unwrap();
        assert!(load(&last).is_err());
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(load(&last).unwrap(), checkpoint(1.0));
}

#[test]
fn the_remedy_is_what_still_works() {
    let dir = tempfile::tempdir().unwrap();
    let (last, best) = (dir.path().join("last"), dir.path().join("best"));
    let damage = |checkpoint: &Path| {
        fs::remove_file(checkpoint.join(MODEL)).unwrap();
        load(checkpoint).unwrap_err().to_string()
    };
    save(&last, &checkpoint(1.0)).unwrap();
    let e = damage(&last);
    assert!(e.contains("is missing") && e.contains("anew") && !e.contains("best"), "{e}");
    for name in [&last, &best] {
        save(name, &checkpoint(1.0)).unwrap();
    }
    let e = damage(&last);
    assert!(e.contains("--which best") && e.contains("best/model.safetensors") && !e.contains("--resume"), "{e}");
    let e = damage(&best);
    assert!(e.contains("--which last") && e.contains("--resume") && !e.contains("--init"), "{e}");
}

/// Every state that a kill during a save can leave.
#[test]
fn a_kill_at_any_moment_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (last, new, old) = (dir.path().join("last"), dir.path().join("last.new"), dir.path().join("last.old"));
    let other = dir.path().join("other");
    save(&last, &checkpoint(1.0)).unwrap();
    // While the new one is being written: the old one counts.
    fs::create_dir(&new).unwrap();
    fs::write(new.join(MODEL), b"half").unwrap();
    assert_eq!(load(&last).unwrap(), checkpoint(1.0));
    // Between the renames, with the new one complete.
    save(&other, &checkpoint(2.0)).unwrap();
    fs::remove_dir_all(&new).unwrap();
    fs::rename(&other, &new).unwrap();
    fs::rename(&last, &old).unwrap();
    assert_eq!(load(&last).unwrap(), checkpoint(2.0));
    // Loading moves nothing: the process that saves may be alive.
    assert!(!last.exists() && new.exists() && old.exists());
    save(&last, &checkpoint(3.0)).unwrap();
    assert_eq!(load(&last).unwrap(), checkpoint(3.0));
    assert!(!old.exists() && !new.exists());
    // Between the renames, with a new one that the disk lost.
    fs::rename(&last, &old).unwrap();
    fs::create_dir(&new).unwrap();
    assert_eq!(load(&last).unwrap(), checkpoint(3.0));
}
