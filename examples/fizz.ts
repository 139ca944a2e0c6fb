// TypeScript runs as it is: types, and await at the top.
type Word = "fizz" | "buzz" | "fizzbuzz";

function say(n: number): Word | number {
  if (n % 15 === 0) return "fizzbuzz";
  if (n % 3 === 0) return "fizz";
  return n % 5 === 0 ? "buzz" : n;
}

const words = await Promise.all(Array.from({ length: 15 }, async (_, i) => say(i + 1)));
console.log(words.join(" "));
