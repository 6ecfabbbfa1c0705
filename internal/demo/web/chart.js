// A line chart of the last two minutes on a canvas.

const span = 120_000
const edge = { right: 10, top: 8, bottom: 20 }

export class Chart {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {string[]} colors  names of CSS properties, one for each line
   * @param {(value: number) => string} format  of the numbers at the axis
   * @param {number} least  the axis reaches at least so far
   * @param {number} base   what round numbers are made of: 10, or 2 for bytes
   */
  constructor(canvas, colors, format, least, base = 10) {
    Object.assign(this, { canvas, colors, format, least, base })
    this.lines = colors.map(() => []) // of [time, value], oldest first
    this.now = 0
    new ResizeObserver(() => this.draw()).observe(canvas)
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw())
  }

  add(line, time, value) {
    const list = this.lines[line]
    list.push([time, value])
    while (list.length > 0 && list[0][0] < time - span - 2000) list.shift()
  }

  clear() {
    for (const list of this.lines) list.length = 0
  }

  values(line) {
    return this.lines[line].filter(([time]) => time >= this.now - span).map(([, value]) => value)
  }

  draw(now = this.now) {
    this.now = now
    const { canvas } = this
    const { width, height } = canvas.getBoundingClientRect()
    if (width === 0) return
    const ratio = devicePixelRatio || 1
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)]
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h]
    const c = canvas.getContext("2d")
    c.setTransform(ratio, 0, 0, ratio, 0, 0)
    c.clearRect(0, 0, width, height)
    const style = getComputedStyle(canvas)
    const color = (property) => style.getPropertyValue(property)
    c.font = `11px ${style.fontFamily}`
    const top = this.top()
    const high = height - edge.top - edge.bottom
    const steps = high < 70 ? 2 : 4
    const labels = Array.from({ length: steps + 1 }, (_, i) => this.format((top * i) / steps))
    const left = Math.ceil(Math.max(30, ...labels.map((label) => c.measureText(label).width))) + 8
    const box = { x: left, y: edge.top, w: width - left - edge.right, h: high }
    const crisp = (v) => (Math.round(v * ratio) + 0.5) / ratio // a line of one pixel, whatever their density
    const x = (time) => box.x + box.w * (1 - (now - time) / span)
    const y = (value) => box.y + box.h * (1 - value / top)

    c.lineWidth = 1 / ratio
    c.fillStyle = color("--soft")
    c.strokeStyle = color("--grid")
    c.textAlign = "right"
    c.textBaseline = "middle"
    for (let i = 0; i <= steps; i++) {
      const at = crisp(y((top * i) / steps))
      c.beginPath()
      c.moveTo(box.x, at)
      c.lineTo(box.x + box.w, at)
      c.stroke()
      c.fillText(labels[i], box.x - 8, at)
    }
    c.textBaseline = "alphabetic"
    for (let s = 0; s <= 120; s += box.w < 420 ? 60 : 30) {
      const at = x(now - s * 1000)
      c.textAlign = s === 0 ? "right" : s === 120 ? "left" : "center"
      c.fillText(s === 0 ? "now" : `−${s} s`, s === 0 ? box.x + box.w : at, height - 5)
    }

    c.save()
    c.beginPath()
    c.rect(box.x, 0, box.w + edge.right, height)
    c.clip()
    this.lines.forEach((list, i) => this.line(c, list, x, y, color(this.colors[i])))
    c.restore()
  }

  line(c, list, x, y, color) {
    c.strokeStyle = c.fillStyle = color
    c.lineWidth = 1.75
    c.lineJoin = c.lineCap = "round"
    c.beginPath()
    let before = -Infinity
    for (const [time, value] of list) {
      if (time - before > 3500) c.moveTo(x(time), y(value)) // nobody looked in between
      else c.lineTo(x(time), y(value))
      before = time
    }
    c.stroke()
    if (list.length === 0) return
    const [time, value] = list.at(-1)
    c.beginPath()
    c.arc(x(time), y(value), 2.75, 0, 2 * Math.PI)
    c.fill()
  }

  /** The end of the axis: a round number at or above every value. */
  top() {
    const most = Math.max(this.least, ...this.lines.flatMap((_, i) => this.values(i)))
    if (this.base === 2) return 2 ** Math.ceil(Math.log2(most))
    const unit = 10 ** Math.floor(Math.log10(most))
    return unit * [1, 2, 4, 6, 8, 10].find((n) => n * unit >= most * 0.9999)
  }
}
