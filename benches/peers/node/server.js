// Node's cluster with express, express-session and connect-redis: session views, a shared total, a fixed-window limit.
//
// Written as those packages' documentation shows it; the client pipelines the limit's two commands by itself.
// Arguments: address to listen on (host:port), Redis's Unix socket or host:port, number of workers.

import cluster from "node:cluster";
import process from "node:process";
import { RedisStore } from "connect-redis";
import express from "express";
import session from "express-session";
import { createClient } from "redis";

const [address, place, workers] = process.argv.slice(2);

// Requests a client may make in one window; never reached, as for the other contenders.
const LIMIT = 1_000_000_000;

// Length of a window, seconds.
const WINDOW = 60;

async function serve() {
  const [redisHost, redisPort] = place.split(":");
  const socket = redisPort ? { host: redisHost, port: Number(redisPort) } : { path: place };
  const redis = createClient({ socket });
  redis.on("error", (error) => console.error(error));
  await redis.connect();

  const app = express();
  app.get("/hello", (request, response) => {
    response.type("text/plain").send(`Handled by worker ${process.pid}\n`);
  });
  app.use(async (request, response, next) => {
    const key = `limit:${request.ip}`;
    const [used] = await Promise.all([redis.incr(key), redis.expire(key, WINDOW)]);
    return used > LIMIT ? response.sendStatus(429) : next();
  });
  app.use(
    session({
      store: new RedisStore({ client: redis }),
      secret: "only a benchmark's secret",
      resave: false,
      saveUninitialized: false,
      cookie: { maxAge: 24 * 60 * 60 * 1000 },
    }),
  );
  app.get("/", async (request, response) => {
    request.session.views = (request.session.views ?? 0) + 1;
    await redis.incr("total");
    response.type("text/plain").send(`PID: ${process.pid} | Views: ${request.session.views}\n`);
  });
  const [host, port] = address.split(":");
  app.listen(Number(port), host);
}

if (cluster.isPrimary) {
  for (let index = 0; index < Number(workers); index += 1) cluster.fork();
  cluster.on("exit", () => cluster.fork());
} else {
  await serve();
}
