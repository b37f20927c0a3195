// From pictures and drawings to the bytes that the networks take.

// A canvas in memory, and its context for reading.
function sheet(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  return [canvas, context];
}

// The square in the centre of an image or video, reduced to `side` pixels or fewer.
// Halving step by step takes the mean of all pixels; one large step would skip most.
export function square(source, side) {
  const width = source.videoWidth || source.naturalWidth || source.width;
  const height = source.videoHeight || source.naturalHeight || source.height;
  let size = Math.min(width, height);
  const [left, top] = [(width - size) / 2, (height - size) / 2];
  let next = size;
  let [canvas, context] = [null, null];
  do {
    const from = size;
    next = Math.max(Math.ceil(size / 2), side);
    if (size <= side) next = size;
    const [smaller, onto] = sheet(next, next);
    if (canvas) onto.drawImage(canvas, 0, 0, from, from, 0, 0, next, next);
    else {
      onto.fillStyle = "#fff"; // behind what is transparent
      onto.fillRect(0, 0, next, next);
      onto.drawImage(source, left, top, from, from, 0, 0, next, next);
    }
    [canvas, context, size] = [smaller, onto, next];
  } while (size > side);
  return context.getImageData(0, 0, size, size);
}

// Red, green and blue of every pixel, without the fourth byte.
export function colours(image) {
  const { data, width, height } = image;
  const bytes = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    bytes[j++] = data[i];
    bytes[j++] = data[i + 1];
    bytes[j++] = data[i + 2];
  }
  return bytes;
}

// White strokes on black as the digits of MNIST are: the strokes in 20x20 pixels, their
// centre of mass in the centre of 28x28. Returns null if nothing is drawn.
export function digit(board) {
  const { width, height } = board;
  const { data } = board.getContext("2d").getImageData(0, 0, width, height);
  let [left, right, top, bottom] = [width, -1, height, -1];
  let [mass, x, y] = [0, 0, 0];
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i += 4) {
      const ink = data[i];
      if (ink < 64) continue;
      left = Math.min(left, column);
      right = Math.max(right, column);
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
      mass += ink;
      x += ink * column;
      y += ink * row;
    }
  }
  if (!mass) return null;
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
  const [centreX, centreY] = [x / mass + 0.5, y / mass + 0.5];
  // Again in steps, for the same reason as above.
  const [large, onto] = sheet(112, 112);
  onto.fillRect(0, 0, 112, 112);
  onto.setTransform(4 * scale, 0, 0, 4 * scale, 56 - 4 * scale * centreX, 56 - 4 * scale * centreY);
  onto.drawImage(board, 0, 0);
  const small = square(large, 28).data;
  return Uint8Array.from({ length: 28 * 28 }, (_, i) => small[4 * i]);
}
