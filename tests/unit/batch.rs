//! What happens to images on their way into a batch: tests of `src/data/batch.rs`.

use super::*;
use crate::data::augment::Border;

fn data(h: usize, w: usize) -> Dataset {
    Dataset {
        name: "test".into(),
        classes: vec!["a".into()],
        height: h,
        width: w,
        channels: 1,
        images: (0..h * w).map(|i| i as u8).collect(),
        labels: vec![0],
    }
}

/// The bytes of the image after its random changes, at one position of the order.
fn bytes(data: &Dataset, augment: Augment, position: usize) -> Vec<u8> {
    let maker = Maker::new(&Transform { mean: vec![0.0], std: vec![1.0], size: None, augment }, data);
    let mut out = vec![0.0; data.image_len()];
    maker.image(data, 0, position, &Step { seed: 3, ..Step::default() }, &mut out);
    out.iter().map(|v| (v * 255.0).round() as u8).collect()
}

#[test]
fn numbers_are_torchvision_s() {
    let transform = Transform { mean: vec![0.5, 0.0, 0.25], std: vec![0.5, 1.0, 0.5], ..Transform::default() };
    let maker = Maker::new(&transform, &data(1, 1));
    let mut out = [0.0; 3];
    maker.normalise(&[255, 51, 0], &mut out);
    assert_eq!(out, [1.0, 0.2, -0.5]);
}

#[test]
fn a_flip_mirrors_rows() {
    let flip = Augment { flip: 1.0, ..Augment::default() };
    assert_eq!(bytes(&data(2, 3), flip, 0), [2, 1, 0, 5, 4, 3]);
    let some = Augment { flip: 0.25, ..Augment::default() };
    let share = (0..4000).filter(|&p| bytes(&data(1, 2), some, p) == [1, 0]).count() as f64 / 4000.0;
    assert!((share - 0.25).abs() < 0.03, "{share}");
}

#[test]
fn crops_reach_every_place_and_borders_are_filled() {
    for border in [Border::Black, Border::Edge, Border::Reflect, Border::Symmetric] {
        let crop = Augment { pad: 2, border, ..Augment::default() };
        let data = data(6, 7);
        let mut seen = std::collections::HashSet::new();
        for position in 0..500 {
            let image = bytes(&data, crop, position);
            let is = |top: isize, left: isize| {
                (0..42).all(|i: isize| {
                    let at = border.place(i / 7 + top, 6).zip(border.place(i % 7 + left, 7));
                    image[i as usize] == at.map_or(0, |(r, c)| (r * 7 + c) as u8)
                })
            };
            let place = (-2..=2).flat_map(|t| (-2..=2).map(move |l| (t, l))).find(|&(t, l)| is(t, l));
            seen.insert(place.unwrap());
        }
        assert_eq!(seen.len(), 25, "{border:?}");
    }
}

#[test]
fn a_turned_image_is_upside_down() {
    let turned = Augment { vertical_flip: 1.0, ..Augment::default() };
    assert_eq!(bytes(&data(3, 2), turned, 0), [4, 5, 2, 3, 0, 1]);
}

#[test]
fn a_cutout_is_the_mean_colour() {
    let cut = Augment { cutout: 2, ..Augment::default() };
    let data = Dataset { images: vec![255; 30], ..data(5, 6) };
    for position in 0..100 {
        let zeros = bytes(&data, cut, position).iter().filter(|&&b| b == 0).count();
        assert!([1, 2, 4].contains(&zeros), "{zeros}");
    }
}

/// A quarter turn, and a half turn, as torchvision's `rotate` makes them: against the clock.
#[test]
fn angles_of_right_corners_move_pixels() {
    let transform = Transform { mean: vec![0.0], std: vec![1.0], ..Transform::default() };
    let mut maker = Maker::new(&transform, &data(3, 3));
    let mut out = vec![0.0; 9];
    let mut turned = |turn| {
        maker.turns = vec![turn];
        maker.sample(&[0, 1, 2, 3, 4, 5, 6, 7, 8], &data(3, 3), &Draw::default(), &mut out);
        out.iter().map(|v| (v * 255.0).round() as u8).collect::<Vec<_>>()
    };
    assert_eq!(turned([65536, 0]), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(turned([0, 65536]), [2, 5, 8, 1, 4, 7, 0, 3, 6]);
    assert_eq!(turned([-65536, 0]), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
}

/// The image that `tools/resize.py` makes, and what torchvision makes of it: enlarged, rotated by some degrees.
#[test]
fn images_are_enlarged_and_rotated_as_by_torchvision() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/resize.json")).unwrap();
    let image = |h: usize, w: usize| Dataset {
        images: (0..h * w * 3)
            .map(|i| (i / 3 % w, i / 3 / w, i % 3))
            .map(|(x, y, c)| ((37 * x + 59 * y + 83 * c + x * y) % 256) as u8)
            .collect(),
        channels: 3,
        ..data(h, w)
    };
    let check = |data: &Dataset, size: Option<usize>, degrees: f64, want: &serde_json::Value| {
        let transform = Transform { mean: vec![0.0; 3], std: vec![1.0; 3], size, ..Transform::default() };
        let mut maker = Maker::new(&transform, data);
        let fixed = |v: f64| (v * 65536.0).round() as i32;
        maker.turns = vec![[fixed(degrees.to_radians().cos()), fixed(degrees.to_radians().sin())]];
        let want: Vec<f32> = serde_json::from_value(want.clone()).unwrap();
        let mut out = vec![0.0; want.len()];
        maker.sample(&data.images, data, &Draw::default(), &mut out);
        let worst = out.iter().zip(&want).map(|(a, b)| (a * 255.0 - b).abs()).fold(0.0, f32::max);
        // In grey levels. A position is off by 2^-11 at most, and two neighbours differ by 255 along each side.
        assert!(worst <= 0.25, "{size:?}, {degrees} degrees: {worst}");
    };
    for (size, want) in golden["enlarged"].as_object().unwrap() {
        check(&image(8, 6), size.parse().ok(), 0.0, want);
    }
    for (degrees, want) in golden["rotated"].as_object().unwrap() {
        check(&image(11, 14), None, degrees.parse().unwrap(), want);
    }
}
