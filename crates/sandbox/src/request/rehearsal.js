const word: string = "ready";
console.log(word);
const said = { log: console.log, info: console.info, warn: console.warn, error: console.error };
for (const name of NAMES) {
    for (const channel of Object.keys(said)) console[channel] = () => {};
    try {
        require(name);
    } catch {
        try {
            await import(name);
        } catch {}
    }
    Object.assign(console, said);
}
